"use strict";
// Pictures are kept once, by number; images are told their numbers.
const pictures = JSON.parse(document.getElementById("pictures").textContent);

for (const image of document.querySelectorAll("img[data-picture]")) {
  image.src = pictures[image.dataset.picture];
}

function showStep(viewer, slider) {
  if (slider) {
    const text = JSON.parse(slider.dataset.steps)[slider.value];
    slider.setAttribute("aria-valuetext", text);
    viewer.querySelector("output").textContent = text;
  }
  const step = slider ? slider.valueAsNumber : 0;
  for (const caption of viewer.querySelectorAll("[data-texts]")) {
    caption.textContent = JSON.parse(caption.dataset.texts)[step];
  }
  for (const image of viewer.querySelectorAll("img[data-frames]")) {
    const frame = JSON.parse(image.dataset.frames)[step];
    image.hidden = frame === null;
    image.nextElementSibling.hidden = frame !== null;
    if (frame !== null) image.src = pictures[frame];
  }
}

// A part is shown if it fits each choice that it has a value for; the choice "" fits all.
function showChosen(viewer) {
  const chosen = [...viewer.querySelectorAll("input[data-choice]:checked")];
  const parts = [...viewer.querySelectorAll("[data-model], [data-score], [data-attribution]")];
  for (const part of parts) {
    part.hidden = chosen.some(({ value, dataset }) => {
      const own = part.dataset[dataset.choice];
      return value !== "" && own !== undefined && own !== value;
    });
  }
  const empty = viewer.querySelector("[data-empty]");
  if (empty) empty.hidden = parts.some((part) => !part.hidden);
}

for (const viewer of document.querySelectorAll("[data-viewer]")) {
  const slider = viewer.querySelector("input[type=range]");
  viewer.addEventListener("input", (event) => (event.target === slider ? showStep(viewer, slider) : showChosen(viewer)));
  showStep(viewer, slider);
  showChosen(viewer);
}

"""The guided-gradient training term: error functions, schedules of its weight, the loss and the mixin."""

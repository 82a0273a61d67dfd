"""Attribution methods: pure tensor functions, and small frozen dataclasses that apply them to a trace."""

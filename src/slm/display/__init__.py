"""What commands and runs show: a live picture in a terminal or a notebook, calm plain lines elsewhere."""

from slm.display.screen import Display as Display
from slm.display.tables import yardstick_lines as yardstick_lines

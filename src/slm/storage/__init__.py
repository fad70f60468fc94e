"""Files, local or remote alike, written whole or not at all; knows no model."""

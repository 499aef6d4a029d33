"""fp8pad in other tools; each module needs the tool that it is named after."""

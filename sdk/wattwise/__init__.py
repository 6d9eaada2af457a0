"""wattwise: run language models on the device you have, inside the memory and the watts you allow."""

"""The machine: what it has, what it allows, what it measures. The bottom layer; imports none of the others."""

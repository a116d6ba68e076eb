"""Starts every step of the study on this machine; what a step does is told by the grid file."""

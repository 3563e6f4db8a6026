"""A model handed on and taken over: to the hub, as plain weights, from the authors' own code."""

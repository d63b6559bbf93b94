"""A small procedural world with captions.

`solids`, `renders`, `words`: eight fixed kinds, of which the render bank knows every view.  `objects`, `parts`, `hits`,
`captions`, `pictures`: sixteen kinds with random proportions and parts, from which priors are trained; `judge` names
what a picture shows.
"""

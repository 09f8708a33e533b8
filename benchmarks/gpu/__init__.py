"""`make gpu`: one command that checks the project on a GPU and measures it there.

No part needs another, nor anything that the project has made before. Without a GPU the same parts
run small on the CPU, so that a GPU is not the first to see them.
"""

"""The checks of ``ckptool verify``; ``registry.py`` lists the modules that have a table of them.

``base.py`` defines a check and the checkpoint that it is asked of, ``registry.py`` lists all
checks, and ``running.py`` turns their answers into verdicts.
"""

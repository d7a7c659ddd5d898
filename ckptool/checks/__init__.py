"""The questions that ``ckptool verify`` asks: one module a family, each with its table of checks.

``base.py`` says what a check is and what it is asked of, ``registry.py`` lists all of them, and
``running.py`` turns what they say into verdicts.
"""

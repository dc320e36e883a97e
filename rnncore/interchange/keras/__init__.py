"""Keras 3: layers and models, ``.keras`` and ``.weights.h5``.

A model is understood by its configuration, which a live model gives and a ``.keras`` file holds, in :mod:`config`. What is
written begins as a configuration too, in :mod:`describe`. Files are read and written without Keras, which they need not
have installed: nothing in them is executed.
"""

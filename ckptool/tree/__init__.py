"""The plain tree into which every format reads a checkpoint; its leaves may refer to tensors.

The one idea: **a tensor is a slice of a file**. A :class:`TensorRef` states the dtype and the shape
of a tensor and the place of its bytes (source, offset, strides); the values stay in the file until
they are read. Two shared tensors are two key paths with the same span, and nothing else needs to
record that they share it.

A tree is made of ``dict``, ``list``, ``tuple``, ``set``, scalars and

* :class:`TensorRef`, a tensor; :class:`CompositeTensor`, made of several (sparse, nested);
* :class:`ArrayRef`, a numpy array; :class:`BytesRef`, a long run of bytes left in the file;
* :class:`Opaque`, an object whose class is never loaded: its arguments, state and items as data;
* :class:`GlobalRef`, the bare name of a class or function.

Pickles hold cycles, shared containers that unfold exponentially and nesting beyond Python's
recursion limit. So :func:`walk` goes by identity with a stack of its own: it walks a container with
two key paths once, and reports the second key path as an alias of the first.
"""

"""Weights on their way from a file to a device, whatever the device.

The way of a weight, in five hops::

    srt/model_loader/weight_utils.py   gguf_quant_weights_iterator: (X.weight, BlockTensor), a view
                                       of the mapped file (block_tensor.py)
    the engine's model.load_weights    narrows it for this rank, finds its place in a parameter, and
                                       copies it there
    pending.py                         PendingWeight.copy_: keeps the piece; when all have come,
                                       layout.py allocates the first layout that can hold them
    load_stream.py                     a thread reads, decodes and converts each piece: Layout.put
    srt/layers/parameter.py            materialize_gguf_weights: its tensors are parameters

Without a packed layout the parameter is a plain tensor, and ``copy_`` decodes into it
(``BlockTensor.dequantize_into``).  ``dense.py`` is the layout that holds every weight, and
``linear_kernel.py`` says what multiplies with the others.  ``report.py`` adds up what they take.
``tuned.py`` keeps which layouts were the quickest on a device.
"""

"""Other channel layers' own suites, run against ours.

Channels' suite is not among them: its source distribution (4.3.2) holds no tests. What
``tests/test_layers.py`` and ``tests/test_inmemorychannel.py`` of its repository ask of a layer is
asked in ``tests/integration/test_layer.py``, which names each promise; its manager of layers is
exercised by ``tests/integration/test_layer_processes.py``.
"""

"""The network as pure functions of arrays: the engine, one step, one layer, the stack, and the public calls."""

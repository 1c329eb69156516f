// Package picklescan decides whether a pickle that a node returned can be handed to a client that will load it.
//
// Beam's Python client loads what a function returned with pickle, which imports and calls whatever the bytes name.
// A hostile node would own that client. So nothing passes that is not known to be data:
//
//  1. Check walks the bytes as CPython's unpickler would, protocols 0 to 5, with frames, marks and memo, but on a stack of
//     kinds: a list, a short text, this global. It makes no Python object and imports nothing.
//  2. A global passes if its exact (module, name) is in the table of globals.go or in Options.Allow. Names that are
//     computed, dotted or escaped do not, nor extension codes, persistent IDs and out-of-band buffers.
//  3. A call passes if the callable is one of them and its arguments are what Python itself writes for it: numpy's
//     constructors trust theirs and can be made to read foreign memory, so a dtype's whole state is checked.
//  4. State is set only on what step 3 made and expects it. Appending goes to lists, sets, dicts and what acts as one.
//  5. What loading it would cost is counted, and bounded by what Python writes for plain data (cost.go): elements that are
//     hashed or compared, bytes that calls copy, keys that collide, depths at which C code calls itself.
//  6. The bytes end with the first pickle's STOP, with one value on the stack.
//
// What passes loads in CPython without calling anything but the table's entries: the tests compare walks with
// pickletools and the names looked up with those of a real unpickler. What is refused may be harmless; the error names
// the global and the remedy. Torch tensors are refused: they nest a second pickle.
//
// Only beambridge/beamapi imports it; it imports nothing of ours, is pure, and takes memory in proportion to its input.
package picklescan

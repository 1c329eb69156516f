package wasm

import "github.com/tetratelabs/wazero/experimental"

// allocator gives linear memory to one instance after another, never more than limit, and remembers how
// much was wanted. Each memory is a mapping that is reserved once at its largest size: growing neither
// moves nor copies it, the kernel provides pages as they are touched, and they go back at the instance's
// end without waiting for a garbage collection.
type allocator struct {
	limit  uint64
	peak   uint64 // largest size handed out
	denied uint64 // largest size refused; 0 if none
}

var _ experimental.MemoryAllocator = (*allocator)(nil)

// Allocate implements experimental.MemoryAllocator.
func (a *allocator) Allocate(_, most uint64) experimental.LinearMemory {
	m := &linearMemory{owner: a}
	m.reserved, m.unmap = reserve(min(most, a.limit))
	return m
}

type linearMemory struct {
	owner    *allocator
	reserved []byte
	unmap    func([]byte)
}

// Reallocate implements experimental.LinearMemory.
func (m *linearMemory) Reallocate(size uint64) []byte {
	if size > m.owner.limit {
		m.owner.denied = max(m.owner.denied, size)
		return nil
	}
	if size > uint64(len(m.reserved)) { // only where nothing could be reserved
		grown := make([]byte, size)
		copy(grown, m.reserved)
		m.free()
		m.reserved = grown
	}
	m.owner.peak = max(m.owner.peak, size)
	return m.reserved[:size:size]
}

// Free implements experimental.LinearMemory.
func (m *linearMemory) Free() {
	m.free()
	m.reserved = nil
}

func (m *linearMemory) free() {
	if m.unmap != nil {
		m.unmap(m.reserved)
		m.unmap = nil
	}
}

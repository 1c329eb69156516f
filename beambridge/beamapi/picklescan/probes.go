package picklescan

// probes are what CPython's dict or set does with hashes: where each key is looked for until a free place is found. Keys
// whose hashes an attacker has chosen make that as long as the table is full; of others it is a few steps.
type probes struct {
	slots []uint64 // hashes, 0 is free
	used  int
	set   bool
	spent uint64 // all steps
}

const (
	// fewKeys is how many keys a container may have before it gets a table: fewer cannot cost much.
	fewKeys = 16
	// firstSlots are those of a dict and of a set that get their next key then.
	firstSlots = 32
	// setLinear is how many neighbours a set looks at before it jumps (LINEAR_PROBES).
	setLinear = 9
)

func newProbes(set bool) *probes {
	return &probes{slots: make([]uint64, firstSlots), set: set, used: fewKeys}
}

// full says that the table grows before its next key.
func (t *probes) full() bool {
	if t.set {
		return t.used*5 >= (len(t.slots)-1)*3
	}
	return t.used*3 >= len(t.slots)*2
}

// grown is the size of its next table (set_table_resize, GROWTH_RATE).
func (t *probes) grown() int {
	least := t.used*3 - 1
	if t.set {
		least = t.used * 4
		if t.used > 50_000 {
			least = t.used * 2
		}
	}
	n := 8
	for n <= least {
		n <<= 1
	}
	return n
}

// add puts a hash in and returns how many other keys were looked at, with those that have the same hash counted
// weight times. It gives up beyond limit.
func (t *probes) add(h, weight, limit uint64) (steps uint64) {
	if t.full() {
		old := t.slots
		t.slots = make([]uint64, t.grown())
		for _, o := range old {
			if o == 0 {
				continue
			}
			if steps += t.place(o, 1, limit); steps > limit {
				return steps
			}
		}
	}
	t.used++
	return steps + t.place(h, weight, limit)
}

// zeroSlot stands for the hash 0 in a slot.
const zeroSlot uint64 = 0xa5f1523d90b7c86e

// place finds a free slot.
func (t *probes) place(h, weight, limit uint64) (steps uint64) {
	stored := h
	switch h {
	case 0:
		stored = zeroSlot
	case zeroSlot:
		h = 0
	}
	mask := uint64(len(t.slots) - 1)
	i, perturb := h&mask, h
	for steps <= limit {
		last := i
		if t.set && i+setLinear <= mask {
			last = i + setLinear
		}
		for j := i; j <= last; j++ {
			switch t.slots[j] {
			case 0:
				t.slots[j] = stored
				return steps
			case stored:
				steps += weight
			default:
				steps++
			}
		}
		perturb >>= 5
		i = (i*5 + perturb + 1) & mask
	}
	return steps
}

package protocol

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// shape bounds how often the fields of a message may come, by number, and those of the messages inside them. It
// is held against the bytes before they are decoded: an empty element has two bytes on the wire and up to a few
// hundred in memory, so a full frame of them would fill 100 MB.
type shape map[protowire.Number]entries

// entries is how often a field may come and what each of them is; in is nil for bytes, texts and messages of
// bounded content.
type entries struct {
	max int
	in  shape
}

// The shapes of payloads. A message that is no list comes once: repeated, protobuf would merge it with the one
// before.
var (
	shapeHolder = shape{2: {maxAddrs, nil}}
	shapeTerms  = shape{
		4: {1, shape{5: {maxArgs, nil}, 6: {maxEnv, nil}, 7: {1, nil}}}, 5: {1, nil}, 6: {maxVolumes, shape{7: {maxHolders, shapeHolder}, 8: {maxPlaces, nil}}},
		10: {maxModels, nil}, 12: {1, shapeHolder},
	}
	shapeReservation  = shape{7: {1, shapeTerms}}
	shapeAnnouncement = shape{4: {MaxAnnounce, nil}}
	shapeLease        = shape{3: {1, nil}, 7: {MaxChunkInputs, nil}}
	shapeLeaseGrants  = shape{9: {MaxClaim, shapeLease}}
	shapeResult       = shape{2: {1, nil}, 5: {1, nil}}
	shapeResults      = shape{3: {MaxResults, shapeResult}}
	shapeReceipt      = shape{7: {MaxRecordsPerReceipt, nil}}
	shapeCounterSign  = shape{4: {MaxRecordsPerReceipt, nil}}
	shapeAttestation  = shape{7: {maxEvidence, nil}}
	shapeGrant        = shape{6: {maxSet, nil}, 7: {1, shape{3: {maxSet, nil}, 6: {maxSet, nil}, 8: {maxSet, nil}, 9: {maxSet, nil}, 12: {maxSet, nil}}}}
	shapeNetworkFile  = shape{5: {maxRoots, nil}, 7: {maxBootstrap, nil}}
	shapeSignedFile   = shape{2: {2 * maxRoots, nil}, 3: {1, nil}, 4: {2 * maxRoots, nil}}
	shapeNetworkExtra = shape{4: {MaxLandmarks, nil}}
	shapeInvitation   = shape{3: {maxInvited, nil}}

	// dht says of the fields of a record what each may hold; these are no tighter than its table.
	shapeCapability = shape{
		8: {16, nil}, 9: {8, nil}, 11: {6, nil}, 16: {1, shape{9: {64, nil}, 12: {4, nil}, 13: {16, nil}}}, 17: {8, shape{29: {64, nil}}},
		18: {1, shape{2: {16, nil}}}, 19: {1, nil}, 20: {16, nil}, 21: {1, shape{3: {16, nil}}}, 22: {16, nil}, 23: {1, nil},
	}
	shapeAvailability = shape{9: {8, nil}}
)

// check counts the fields of a message; it returns ErrMalformed or ErrBounds.
func (s shape) check(noun string, b []byte) error {
	if s == nil {
		return nil
	}
	var seen [32]int // fields above 31 have no bound of their own
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fmt.Errorf("%w: %s: %w", ErrMalformed, noun, protowire.ParseError(n))
		}
		size := protowire.ConsumeFieldValue(num, typ, b[n:])
		if size < 0 {
			return fmt.Errorf("%w: %s: %w", ErrMalformed, noun, protowire.ParseError(size))
		}
		value := b[n : n+size]
		b = b[n+size:]
		e, bounded := s[num]
		if !bounded || typ != protowire.BytesType {
			continue
		}
		if seen[num]++; seen[num] > e.max {
			return bounds(noun, fmt.Sprintf("field %d", num), "comes more than %d times", e.max)
		}
		if e.in == nil {
			continue
		}
		inner, _ := protowire.ConsumeBytes(value)
		if err := e.in.check(noun, inner); err != nil {
			return err
		}
	}
	return nil
}

package protocol

import (
	"crypto/sha256"
	"fmt"
	"regexp"
)

// AvailShards is the number of availability topics (discovery.md 4).
const AvailShards = 32

// TopicPrefix begins the name of every topic.
const TopicPrefix = "/gridbeam/1/"

// TopicAllow matches every topic that gridbeam speaks; subscriptions to others are refused. A job's ID has one
// text, whose last letter carries three bits, and there are 32 availability shards.
var TopicAllow = regexp.MustCompile(`^/gridbeam/1/(avail/[01][0-9a-f]|calls/[a-z0-9-]{1,48}|job/[a-z2-7]{25}[aeimquy4]|volume/[a-z0-9]{1,80}|trust)$`)

// TopicAvail returns the availability topic of a GPU model slug ("none" for a node that offers CPU only):
// the shard is SHA-256(slug)[0] mod 32 in two hex digits (discovery.md 4).
func TopicAvail(slug string) string {
	return TopicAvailShard(int(sha256.Sum256([]byte(slug))[0]) % AvailShards)
}

// TopicAvailShard returns the availability topic of a shard, 0 ≤ shard < AvailShards.
func TopicAvailShard(shard int) string { return fmt.Sprintf("%savail/%02x", TopicPrefix, shard) }

// TopicJob returns the announcement topic of a job.
func TopicJob(id JobID) string { return TopicPrefix + "job/" + id.String() }

// TopicTrust carries revocations, grant epochs and fraud proofs.
const TopicTrust = TopicPrefix + "trust"

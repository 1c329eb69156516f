package protocol

import (
	"strings"
	"testing"
)

func TestTopicAllowMatchesWhatIsSpokenAndNothingElse(t *testing.T) {
	good := []string{TopicTrust, TopicAvail("none"), TopicAvail("nvidia-h100"), "/gridbeam/1/calls/eu-west", "/gridbeam/1/volume/bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi"}
	for shard := range AvailShards {
		good = append(good, TopicAvailShard(shard))
	}
	for range 200 {
		good = append(good, TopicJob(NewJobID()))
	}
	for _, topic := range good {
		if !TopicAllow.MatchString(topic) || !strings.HasPrefix(topic, TopicPrefix) {
			t.Errorf("%s is refused", topic)
		}
		for _, bad := range []string{topic + "/", topic + "\n", " " + topic, topic + "\x00", strings.ToUpper(topic), topic[1:], "x" + topic, "/gridbeam/2/" + topic[len(TopicPrefix):]} {
			if TopicAllow.MatchString(bad) {
				t.Errorf("%q is allowed", bad)
			}
		}
	}
	job := TopicJob(JobID{})
	for _, bad := range []string{
		"", "/", TopicPrefix, "/gridbeam/1/avail/20", "/gridbeam/1/avail/ff", "/gridbeam/1/avail/0", "/gridbeam/1/avail/000", "/gridbeam/1/avail/", "/gridbeam/1/job/", job[:len(job)-1], job + "a",
		job[:len(job)-1] + "b", job[:len(job)-1] + "7", "/gridbeam/1/job/" + strings.Repeat("1", 26), "/gridbeam/1/calls/", "/gridbeam/1/calls/" + strings.Repeat("a", 49), "/gridbeam/1/calls/a_b",
		"/gridbeam/1/volume/", "/gridbeam/1/volume/" + strings.Repeat("a", 81), "/gridbeam/1/volume/A", "/gridbeam/1/volume/../trust", "/gridbeam/1/trusts", "/gridbeam/1/other", "floodsub",
	} {
		if TopicAllow.MatchString(bad) {
			t.Errorf("%q is allowed", bad)
		}
	}
}

// The last letter of a job's text carries three bits: every ID has to end in a letter that is allowed.
func TestEveryJobHasATopic(t *testing.T) {
	for n := range 256 {
		id := JobID(bytes16(byte(n)))
		id[15] = byte(n)
		if !TopicAllow.MatchString(TopicJob(id)) {
			t.Errorf("the topic of %s is refused", id)
		}
	}
}

func TestAvailabilityTopicsAreFrozen(t *testing.T) {
	for slug, want := range map[string]string{"none": "/gridbeam/1/avail/14", "nvidia-h100": "/gridbeam/1/avail/0b"} {
		if got := TopicAvail(slug); got != want {
			t.Errorf("%s: %s, want %s", slug, got, want)
		}
	}
}

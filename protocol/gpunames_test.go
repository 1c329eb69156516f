package protocol

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

const gib = 1 << 30

func TestDriverNamesBecomeSlugs(t *testing.T) {
	mib := func(n uint64) uint64 { return n << 20 }
	for _, c := range []struct {
		raw   string
		bytes uint64
		slug  string
		known bool
	}{
		{"NVIDIA A100-SXM4-40GB", mib(40960), "nvidia-a100-40gb-sxm", true},
		{"NVIDIA A100-SXM4-40GB", mib(40536), "nvidia-a100-40gb-sxm", true},
		{"NVIDIA A100-SXM4-80GB", mib(81920), "nvidia-a100-80gb-sxm", true},
		{"NVIDIA A100-SXM4-80GB", 0, "nvidia-a100-80gb-sxm", true},
		{"A100-SXM4-40GB", mib(40537), "nvidia-a100-40gb-sxm", true},
		{"NVIDIA A100-PCIE-40GB", mib(40960), "nvidia-a100-40gb-pcie", true},
		{"NVIDIA A100 80GB PCIe", mib(81920), "nvidia-a100-80gb-pcie", true},
		{"NVIDIA H100 80GB HBM3", mib(81559), "nvidia-h100-80gb-sxm", true},
		{"NVIDIA H100 PCIe", mib(81559), "nvidia-h100-80gb-pcie", true},
		{"NVIDIA H100 NVL", mib(95830), "nvidia-h100-94gb-nvl", true},
		{"NVIDIA H200", mib(143771), "nvidia-h200-141gb-sxm", true},
		{"NVIDIA H200 NVL", mib(143771), "nvidia-h200-141gb-nvl", true},
		{"NVIDIA GH200 480GB", mib(97871), "nvidia-gh200-96gb", true},
		{"NVIDIA B200", mib(183359), "nvidia-b200-180gb-sxm", true},
		{"NVIDIA GB200", mib(189471), "nvidia-gb200-192gb", true},
		{"NVIDIA B300 SXM6 AC", mib(275040), "nvidia-b300-288gb-sxm", true},
		{"NVIDIA GB10", 0, "nvidia-gb10-128gb", true},
		{"NVIDIA H800", mib(81559), "nvidia-h800-80gb-sxm", true},
		{"NVIDIA H20", mib(97871), "nvidia-h20-96gb-sxm", true},
		{"NVIDIA L4", mib(23034), "nvidia-l4-24gb", true},
		{"NVIDIA L40", mib(46068), "nvidia-l40-48gb", true},
		{"NVIDIA L40S", mib(46068), "nvidia-l40s-48gb", true},
		{"NVIDIA L20", mib(46068), "nvidia-l20-48gb", true},
		{"NVIDIA A10", mib(23028), "nvidia-a10-24gb", true},
		{"NVIDIA A10G", mib(23028), "nvidia-a10g-24gb", true},
		{"NVIDIA A16", mib(15356), "nvidia-a16-16gb", true},
		{"NVIDIA A2", mib(15356), "nvidia-a2-16gb", true},
		{"NVIDIA A30", mib(24576), "nvidia-a30-24gb", true},
		{"NVIDIA A40", mib(46068), "nvidia-a40-48gb", true},
		{"Tesla T4", mib(15360), "nvidia-t4-16gb", true},
		{"Tesla T4", mib(15109), "nvidia-t4-16gb", true},
		{"Tesla V100-SXM2-16GB", mib(16160), "nvidia-v100-16gb-sxm", true},
		{"Tesla V100-SXM2-32GB", mib(32510), "nvidia-v100-32gb-sxm", true},
		{"Tesla V100-PCIE-16GB", mib(16160), "nvidia-v100-16gb-pcie", true},
		{"Tesla V100S-PCIE-32GB", mib(32510), "nvidia-v100s-32gb-pcie", true},
		{"Tesla P100-PCIE-16GB", mib(16280), "nvidia-p100-16gb-pcie", true},
		{"Tesla P40", mib(22919), "nvidia-p40-24gb", true},
		{"NVIDIA RTX A4000", mib(16376), "nvidia-rtx-a4000-16gb", true},
		{"NVIDIA RTX A5000", mib(24564), "nvidia-rtx-a5000-24gb", true},
		{"NVIDIA RTX A6000", mib(49140), "nvidia-rtx-a6000-48gb", true},
		{"NVIDIA RTX A6000", mib(46068), "nvidia-rtx-a6000-48gb", true},
		{"NVIDIA RTX 4000 Ada Generation", mib(20475), "nvidia-rtx-4000-ada-20gb", true},
		{"NVIDIA RTX 4000 SFF Ada Generation", mib(20475), "nvidia-rtx-4000-ada-20gb", true},
		{"NVIDIA RTX 6000 Ada Generation", mib(49140), "nvidia-rtx-6000-ada-48gb", true},
		{"Quadro RTX 6000", mib(22698), "nvidia-rtx-6000-24gb", true},
		{"Quadro RTX 8000", mib(46080), "nvidia-rtx-8000-48gb", true},
		{"NVIDIA RTX PRO 6000 Blackwell Server Edition", mib(97887), "nvidia-rtx-pro-6000-96gb", true},
		{"NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", mib(97887), "nvidia-rtx-pro-6000-96gb", true},
		{"NVIDIA GeForce RTX 5090", mib(32607), "nvidia-rtx-5090-32gb", true},
		{"NVIDIA GeForce RTX 4090", mib(24564), "nvidia-rtx-4090-24gb", true},
		{"NVIDIA  GeForce  RTX 4090 D", mib(24564), "nvidia-rtx-4090-d-24gb", true},
		{"NVIDIA GeForce RTX 4070 Ti SUPER", mib(16376), "nvidia-rtx-4070-ti-super-16gb", true},
		{"NVIDIA GeForce RTX 3090", mib(24576), "nvidia-rtx-3090-24gb", true},
		{"NVIDIA GeForce RTX 3080", mib(10240), "nvidia-rtx-3080-10gb", true},
		{"NVIDIA GeForce RTX 3080", mib(12288), "nvidia-rtx-3080-12gb", true},
		{"NVIDIA GeForce RTX 2080 Ti", mib(11264), "nvidia-rtx-2080-ti-11gb", true},
		{"GeForce GTX 1080 Ti", mib(11178), "nvidia-gtx-1080-ti-11gb", true},
		{"NVIDIA GeForce RTX 2060", mib(6144), "nvidia-rtx-2060-6gb", true},
		{"NVIDIA TITAN RTX", mib(24220), "nvidia-titan-rtx-24gb", true},
		{"NVIDIA GeForce RTX 9999", mib(40960), "nvidia-rtx-9999-40gb", false},
		{"NVIDIA X100-SXM7-256GB HBM5", 0, "nvidia-x100-sxm", false},
		{"NVIDIA Z1 96GB HBM4 PCIe", mib(97887), "nvidia-z1-96gb-pcie", false},
		{"AMD Instinct MI300X", mib(196608), "amd-instinct-mi300x-192gb", false},
		{"", 0, "nvidia-gpu", false},
		{strings.Repeat("very long name ", 9), 16 * gib, "nvidia-very-long-name-very-long-name-very-l-16gb", false},
	} {
		got := NameGPU(c.raw, c.bytes)
		if got.Slug != c.slug || got.Known != c.known {
			t.Errorf("NameGPU(%q, %d) = %q known %t, want %q known %t", c.raw, c.bytes, got.Slug, got.Known, c.slug, c.known)
		}
		if len(got.Slug) > MaxModel {
			t.Errorf("slug %q has %d bytes", got.Slug, len(got.Slug))
		}
	}
}

func TestNominalSizesFollowTheMarket(t *testing.T) {
	for _, c := range []struct {
		gib  float64
		want int
	}{
		{0, 0},
		{79.65, 80},
		{93.58, 94},
		{95.58, 96},
		{139.8, 141},
		{178.35, 180},
		{44.99, 48},
		{10.91, 11},
		{22.0, 24},
		{14.56, 16},
		{72, 80},
		{71.9, 72},
		{81.6, 80},
		{81.7, 82},
		{256, 256},
		{4.95, 5},
		{1, 1},
	} {
		if got := NominalGB(uint64(c.gib * gib)); got != c.want {
			t.Errorf("NominalGB(%v GiB) = %d, want %d", c.gib, got, c.want)
		}
	}
	if r, ok := VRAMRung(94); !ok || r != 80 {
		t.Errorf("rung of 94 GB = %d, %t", r, ok)
	}
	if _, ok := VRAMRung(6); ok {
		t.Error("6 GB reached a rung")
	}
}

func TestRequestedNamesNormaliseAsBeamDoes(t *testing.T) {
	for _, c := range []struct{ request, alias string }{
		{"A100", "A100"},
		{"a100-80", "A100-80"},
		{"NVIDIA A100-SXM4-80GB", "A100-80"},
		{"A100 40G", "A100-40"},
		{"A100-40", "A100-40"},
		{"nvidia h100 80gb hbm3", "H100"},
		{"L40S", "L40S"},
		{"NVIDIA L40", "L40"},
		{"l4", "L4"},
		{"Tesla T4", "T4"},
		{"GeForce RTX 4090", "RTX4090"},
		{"rtx-4090", "RTX4090"},
		{"NVIDIA RTX A6000", "A6000"},
		{"RTX 6000 Ada Generation", "RTX6000Ada"},
		{"Quadro RTX 6000", "RTX6000"},
		{"RTX PRO 6000 Blackwell", "RTXPro6000"},
		{"V100-SXM2-32GB", "V100-32"},
		{"V100", "V100"},
		{"B200", "B200"},
		{"GB200", "GB200"},
		{"GH200", "GH200"},
		{"A10G", "A10G"},
		{"A10", "A10"},
		{"RTX3090", "RTX3090"},
		{"any", "any"},
		{"ANY", "any"},
		{"nvidia-h100-80gb-sxm", "nvidia-h100-80gb-sxm"},
		{"T400", "T400"},
		{"a2", "A2"},
		{"A100SXM480GB", "A100-80"},
		{"A10080GB", "A100-80"},
		{"H100SXM5", "H100"},
		{"H10080GB", "H100"},
		{"RTXA6000", "A6000"},
		{"NVIDIA A100X", "A100"},
		{"NVIDIA H20-3e", "H20"},
		{"2 x H100", "H100"},
	} {
		got, err := ResolveGPU(c.request)
		if err != nil || got.Alias != c.alias {
			t.Errorf("ResolveGPU(%q) = %q, %v; want %q", c.request, got.Alias, err, c.alias)
		}
	}
	set, _ := ResolveGPU("A100-40")
	if !slices.Equal(set.Slugs, []string{"nvidia-a100-40gb-pcie", "nvidia-a100-40gb-sxm"}) {
		t.Errorf("A100-40 = %v", set.Slugs)
	}
	if b200, _ := ResolveGPU("B200"); b200.Has("nvidia-gb200-192gb") {
		t.Error("B200 took a GB200")
	}
	if l40, _ := ResolveGPU("L40"); l40.Has("nvidia-l40s-48gb") {
		t.Error("L40 took an L40S")
	}
}

func TestUnknownRequestNamesTheNearest(t *testing.T) {
	for _, bad := range []string{"", "quantum", "---", strings.Repeat("a", 500)} {
		if _, err := ResolveGPU(bad); !errors.Is(err, ErrUnknownGPU) {
			t.Errorf("ResolveGPU(%q) = %v", bad, err)
		}
	}
	_, err := ResolveGPU("H10")
	if err == nil || !strings.Contains(err.Error(), "H100") {
		t.Errorf("nearest of H10: %v", err)
	}
}

// TestAliasInsideALongerWordIsNoName: a typo must not become a GPU that nobody asked for.
func TestAliasInsideALongerWordIsNoName(t *testing.T) {
	for request, nearest := range map[string]string{
		"H1000": "H100", "nvidia h1000": "H100", "A1000": "A100", "A100000-80": "A100", "RTX40900": "RTX4090",
		"H2000": "H200", "GB2000": "GB200", "XH100": "H100", "T40": "T4", "A1OO": "A10", "H100SXM55": "H100",
	} {
		set, err := ResolveGPU(request)
		if !errors.Is(err, ErrUnknownGPU) || !strings.Contains(err.Error(), nearest) {
			t.Errorf("ResolveGPU(%q) = %q, %v; want an error that names %s", request, set.Alias, err, nearest)
		}
		if _, err := ParseFilter(`gpu.model == "` + request + `"`); err == nil || !strings.Contains(err.Error(), nearest) {
			t.Errorf("the filter with %q: %v, want an error that names %s", request, err, nearest)
		}
	}
}

func TestEveryDriversNameMayBeAskedFor(t *testing.T) {
	for raw, row := range gpuByRaw {
		for _, request := range []string{raw, "NVIDIA " + raw, strings.ToUpper(raw)} {
			set, err := ResolveGPU(request)
			if err != nil {
				t.Errorf("ResolveGPU(%q): %v", request, err)
				continue
			}
			if !slices.ContainsFunc(row.sizes, func(gb int) bool { return set.Has(row.slug(gb)) }) {
				t.Errorf("ResolveGPU(%q) = %s, %v: none of the card's slugs", request, set.Alias, set.Slugs)
			}
		}
	}
}

func TestEveryKnownNameIsInTheSetOfAnAlias(t *testing.T) {
	for raw, row := range gpuByRaw {
		for _, gb := range row.sizes {
			slug := row.slug(gb)
			if !slices.ContainsFunc(aliasSets, func(a aliasSet) bool { return slices.Contains(a.slugs, slug) }) {
				t.Errorf("%q: no alias has %s", raw, slug)
			}
			if set, err := ResolveGPU(slug); err != nil || !set.Has(slug) {
				t.Errorf("slug %s does not resolve to itself: %v", slug, err)
			}
		}
	}
}

package protocol

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// ErrUnknownGPU means that a requested GPU name is neither an alias, a slug nor a part of one.
var ErrUnknownGPU = errors.New("protocol: unknown GPU name")

// MaxModel bounds a model slug in bytes (discovery.md 2, GpuGroup.model).
const MaxModel = 48

// AnyGPU is the alias that every known or unknown GPU satisfies (Beam's "any").
const AnyGPU = "any"

// GPUName is what a driver's product name and memory size mean.
type GPUName struct {
	// Slug is vendor-chip-nominalGB[-pcie|-sxm|-nvl], for example nvidia-h100-80gb-sxm.
	Slug string
	// Known says that the driver's name is in the table; otherwise Slug was made mechanically.
	Known bool
	// NominalGB is the memory as the card is sold, 0 when the size was not given and the name fixes none.
	NominalGB int
	// Form is pcie, sxm, nvl or empty when the name does not tell.
	Form string
}

// nominalSizes are the memory sizes in GB that cards are sold with (discovery.md 1).
var nominalSizes = []int{4, 6, 8, 10, 11, 12, 16, 20, 24, 32, 40, 48, 64, 80, 94, 96, 128, 141, 180, 192, 288}

// VRAMRungs are the rungs of the vram provider keys in nominal GB, ascending (discovery.md 4).
var VRAMRungs = []int{8, 16, 24, 40, 48, 80, 141, 192}

// NominalGB returns the memory size as a card with this many bytes is sold: the nearest size on the market
// when the reported GiB lie within -10 % and +2 % of it, otherwise the GiB rounded. An 80 GB H100 reports
// 79.65 GiB. 0 means unknown and gives 0.
func NominalGB(bytes uint64) int {
	gib := float64(bytes) / (1 << 30)
	best := 0
	for _, n := range nominalSizes {
		fits := gib >= 0.90*float64(n) && gib <= 1.02*float64(n)
		if fits && (best == 0 || math.Abs(gib-float64(n)) < math.Abs(gib-float64(best))) {
			best = n
		}
	}
	if best != 0 {
		return best
	}
	return int(math.Round(gib))
}

// VRAMRung returns the highest rung that a card of this nominal size reaches; false below the lowest.
func VRAMRung(nominalGB int) (int, bool) {
	for _, r := range slices.Backward(VRAMRungs) {
		if nominalGB >= r {
			return r, true
		}
	}
	return 0, false
}

// gpuModel is one row of the table of GPUs: the driver's exact names (lower case, without a leading
// "nvidia "), the chip and form of the slug, and the sizes it is sold with.
type gpuModel struct {
	chip  string
	form  string
	sizes []int
	raw   []string
}

// vendor names the vendor of a chip; all but a few are NVIDIA's.
func (m gpuModel) vendor() string {
	switch m.chip {
	case "gaudi2":
		return "intel"
	default:
		return "nvidia"
	}
}

func (m gpuModel) slug(gb int) string { return joinSlug(m.vendor(), m.chip, gb, m.form) }

func joinSlug(vendor, chip string, gb int, form string) string {
	s := vendor + "-" + chip
	if gb > 0 {
		s += "-" + strconv.Itoa(gb) + "gb"
	}
	if form != "" {
		s += "-" + form
	}
	return s
}

// gpuTable lists the cards that the drivers name. Sources: product names of NVML as its drivers report
// them, sizes from the vendors' data sheets.
var gpuTable = []gpuModel{
	// Data centre, Blackwell and Hopper.
	{"b300", "sxm", []int{288}, []string{"b300", "b300 sxm6 ac", "b300 sxm ac"}},
	{"gb300", "", []int{288}, []string{"gb300"}},
	{"b200", "sxm", []int{180, 192}, []string{"b200", "b200 180gb hbm3e"}},
	{"gb200", "", []int{180, 192}, []string{"gb200", "gb200 nvl"}},
	{"gb10", "", []int{128}, []string{"gb10"}},
	{"gh200", "", []int{96, 144}, []string{"gh200", "gh200 480gb", "gh200 120gb", "gh200 144g hbm3e", "gh200 96gb hbm3"}},
	{"h200", "sxm", []int{141}, []string{"h200", "h200 sxm", "h200 141gb hbm3e"}},
	{"h200", "nvl", []int{141}, []string{"h200 nvl"}},
	{"h100", "sxm", []int{80, 64, 96}, []string{"h100 80gb hbm3", "h100 sxm5 80gb", "h100-sxm5-80gb", "h100 sxm5 64gb", "h100 64gb hbm3", "h100 96gb hbm3", "h100 80gb hbm2e sxm"}},
	{"h100", "pcie", []int{80}, []string{"h100 pcie", "h100 80gb pcie", "h100-pcie-80gb", "h100 80gb hbm2e"}},
	{"h100", "nvl", []int{94}, []string{"h100 nvl"}},
	{"h800", "sxm", []int{80}, []string{"h800", "h800 80gb hbm3"}},
	{"h800", "pcie", []int{80}, []string{"h800 pcie"}},
	{"h20", "sxm", []int{96, 141}, []string{"h20", "h20-3e"}},
	// Data centre, Ampere and Ada.
	{"a100", "sxm", []int{40, 80, 64}, []string{"a100-sxm4-40gb", "a100-sxm4-80gb", "a100-sxm-80gb", "a100-sxm-64gb", "a100-sxm-40gb", "dgx display a100"}},
	{"a100", "pcie", []int{40, 80}, []string{"a100-pcie-40gb", "a100 80gb pcie", "a100-pcie-80gb", "a100-pg509-200", "a100x"}},
	{"a800", "sxm", []int{80}, []string{"a800-sxm4-80gb"}},
	{"a800", "pcie", []int{80, 40}, []string{"a800 80gb pcie", "a800 40gb active"}},
	{"a30", "", []int{24}, []string{"a30"}},
	{"a30x", "", []int{24}, []string{"a30x"}},
	{"a40", "", []int{48}, []string{"a40", "a40-48q"}},
	{"a16", "", []int{16}, []string{"a16"}},
	{"a10", "", []int{24}, []string{"a10"}},
	{"a10g", "", []int{24}, []string{"a10g"}},
	{"a10m", "", []int{20}, []string{"a10m"}},
	{"a2", "", []int{16}, []string{"a2"}},
	{"l4", "", []int{24}, []string{"l4"}},
	{"l2", "", []int{24}, []string{"l2"}},
	{"l20", "", []int{48}, []string{"l20"}},
	{"l40", "", []int{48}, []string{"l40"}},
	{"l40g", "", []int{24}, []string{"l40g"}},
	{"l40s", "", []int{48}, []string{"l40s"}},
	// Data centre, Turing and before.
	{"t4", "", []int{16}, []string{"tesla t4", "t4"}},
	{"t4g", "", []int{16}, []string{"t4g", "tesla t4g"}},
	{"v100", "sxm", []int{16, 32}, []string{"tesla v100-sxm2-16gb", "tesla v100-sxm2-32gb", "tesla v100-sxm3-32gb", "tesla v100-sxm3-32gb-h", "tesla v100-dgxs-16gb", "tesla v100-dgxs-32gb", "tesla v100-sxm2-32gb-ls"}},
	{"v100", "pcie", []int{16, 32}, []string{"tesla v100-pcie-16gb", "tesla v100-pcie-32gb", "tesla v100-fhhl-16gb"}},
	{"v100s", "pcie", []int{32}, []string{"tesla v100s-pcie-32gb"}},
	{"p100", "pcie", []int{16, 12}, []string{"tesla p100-pcie-16gb", "tesla p100-pcie-12gb"}},
	{"p100", "sxm", []int{16}, []string{"tesla p100-sxm2-16gb"}},
	{"p40", "", []int{24}, []string{"tesla p40"}},
	{"p4", "", []int{8}, []string{"tesla p4"}},
	// Workstation.
	{"rtx-pro-6000", "", []int{96}, []string{"rtx pro 6000 blackwell server edition", "rtx pro 6000 blackwell workstation edition", "rtx pro 6000 blackwell max-q workstation edition"}},
	{"rtx-pro-5000", "", []int{48, 72}, []string{"rtx pro 5000 blackwell"}},
	{"rtx-pro-4500", "", []int{32}, []string{"rtx pro 4500 blackwell"}},
	{"rtx-pro-4000", "", []int{24}, []string{"rtx pro 4000 blackwell"}},
	{"rtx-6000-ada", "", []int{48}, []string{"rtx 6000 ada generation"}},
	{"rtx-5880-ada", "", []int{48}, []string{"rtx 5880 ada generation"}},
	{"rtx-5000-ada", "", []int{32}, []string{"rtx 5000 ada generation"}},
	{"rtx-4500-ada", "", []int{24}, []string{"rtx 4500 ada generation"}},
	{"rtx-4000-ada", "", []int{20}, []string{"rtx 4000 ada generation", "rtx 4000 sff ada generation"}},
	{"rtx-2000-ada", "", []int{16}, []string{"rtx 2000 ada generation"}},
	{"rtx-a6000", "", []int{48}, []string{"rtx a6000"}},
	{"rtx-a5500", "", []int{24}, []string{"rtx a5500"}},
	{"rtx-a5000", "", []int{24}, []string{"rtx a5000"}},
	{"rtx-a4500", "", []int{20}, []string{"rtx a4500"}},
	{"rtx-a4000", "", []int{16}, []string{"rtx a4000"}},
	{"rtx-a2000", "", []int{6, 12}, []string{"rtx a2000", "rtx a2000 12gb"}},
	{"rtx-8000", "", []int{48}, []string{"quadro rtx 8000"}},
	{"rtx-6000", "", []int{24}, []string{"quadro rtx 6000"}},
	{"rtx-5000", "", []int{16}, []string{"quadro rtx 5000"}},
	{"rtx-4000", "", []int{8}, []string{"quadro rtx 4000"}},
	{"t1000", "", []int{4, 8}, []string{"t1000", "t1000 8gb"}},
	{"t600", "", []int{4}, []string{"t600"}},
	{"t400", "", []int{4}, []string{"t400 4gb", "t400"}},
	{"titan-rtx", "", []int{24}, []string{"titan rtx"}},
	{"titan-v", "", []int{12}, []string{"titan v"}},
	// Consumer.
	{"rtx-5090", "", []int{32}, []string{"geforce rtx 5090"}},
	{"rtx-5090-d", "", []int{32}, []string{"geforce rtx 5090 d"}},
	{"rtx-5080", "", []int{16}, []string{"geforce rtx 5080"}},
	{"rtx-5070-ti", "", []int{16}, []string{"geforce rtx 5070 ti"}},
	{"rtx-5070", "", []int{12}, []string{"geforce rtx 5070"}},
	{"rtx-5060-ti", "", []int{8, 16}, []string{"geforce rtx 5060 ti"}},
	{"rtx-4090", "", []int{24}, []string{"geforce rtx 4090"}},
	{"rtx-4090-d", "", []int{24}, []string{"geforce rtx 4090 d"}},
	{"rtx-4090-laptop", "", []int{16}, []string{"geforce rtx 4090 laptop gpu"}},
	{"rtx-4080-super", "", []int{16}, []string{"geforce rtx 4080 super"}},
	{"rtx-4080", "", []int{16}, []string{"geforce rtx 4080"}},
	{"rtx-4070-ti-super", "", []int{16}, []string{"geforce rtx 4070 ti super"}},
	{"rtx-4070-ti", "", []int{12}, []string{"geforce rtx 4070 ti"}},
	{"rtx-4070-super", "", []int{12}, []string{"geforce rtx 4070 super"}},
	{"rtx-4070", "", []int{12}, []string{"geforce rtx 4070"}},
	{"rtx-4060-ti", "", []int{8, 16}, []string{"geforce rtx 4060 ti"}},
	{"rtx-4060", "", []int{8}, []string{"geforce rtx 4060"}},
	{"rtx-3090-ti", "", []int{24}, []string{"geforce rtx 3090 ti"}},
	{"rtx-3090", "", []int{24}, []string{"geforce rtx 3090"}},
	{"rtx-3080-ti", "", []int{12}, []string{"geforce rtx 3080 ti"}},
	{"rtx-3080", "", []int{10, 12}, []string{"geforce rtx 3080"}},
	{"rtx-3070-ti", "", []int{8}, []string{"geforce rtx 3070 ti"}},
	{"rtx-3070", "", []int{8}, []string{"geforce rtx 3070"}},
	{"rtx-3060-ti", "", []int{8}, []string{"geforce rtx 3060 ti"}},
	{"rtx-3060", "", []int{12, 8}, []string{"geforce rtx 3060"}},
	{"rtx-2080-ti", "", []int{11}, []string{"geforce rtx 2080 ti"}},
	{"rtx-2080-super", "", []int{8}, []string{"geforce rtx 2080 super"}},
	{"rtx-2080", "", []int{8}, []string{"geforce rtx 2080"}},
	{"rtx-2070", "", []int{8}, []string{"geforce rtx 2070"}},
	{"rtx-2060", "", []int{6, 12}, []string{"geforce rtx 2060"}},
	{"gtx-1080-ti", "", []int{11}, []string{"geforce gtx 1080 ti"}},
	{"gtx-1080", "", []int{8}, []string{"geforce gtx 1080"}},
	{"gtx-1070", "", []int{8}, []string{"geforce gtx 1070"}},
	{"gtx-1060", "", []int{6}, []string{"geforce gtx 1060 6gb"}},
	// Other vendors: named, not measured.
	{"gaudi2", "", []int{96}, []string{"gaudi2", "hl-225"}},
}

// gpuByRaw finds a row by the driver's name.
var gpuByRaw = func() map[string]gpuModel {
	m := make(map[string]gpuModel, 2*len(gpuTable))
	for _, row := range gpuTable {
		for _, raw := range row.raw {
			m[raw] = row
		}
	}
	return m
}()

// NameGPU turns a driver's product name and the reported memory in bytes (0 = unknown) into a slug. A name
// that is not in the table gets a mechanical slug and Known = false; the caller keeps the raw name beside it.
func NameGPU(raw string, vramBytes uint64) GPUName {
	key := rawKey(raw)
	gb := NominalGB(vramBytes)
	row, known := gpuByRaw[key]
	if !known {
		return mechanicalName(key, gb)
	}
	if gb == 0 {
		gb = sizeInName(key)
	}
	if gb == 0 && len(row.sizes) == 1 {
		gb = row.sizes[0]
	}
	return GPUName{Slug: row.slug(gb), Known: true, NominalGB: gb, Form: row.form}
}

// rawKey is a driver's name as gpuByRaw spells it.
func rawKey(raw string) string {
	return strings.TrimPrefix(strings.Join(strings.Fields(strings.ToLower(raw)), " "), "nvidia ")
}

var (
	sizeToken = regexp.MustCompile(`^([0-9]{1,3})gb?$`)
	formToken = regexp.MustCompile(`^(pcie|nvl|sxm)[0-9]*$`)
	memToken  = regexp.MustCompile(`^(hbm[0-9]e?|gddr[0-9]x?)$`)
	splitName = regexp.MustCompile(`[^a-z0-9]+`)
	slugForm  = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*-[0-9]{1,3}gb(-(pcie|sxm|nvl))?$`)
)

func sizeInName(key string) int {
	for _, t := range splitName.Split(key, -1) {
		if m := sizeToken.FindStringSubmatch(t); m != nil {
			n, _ := strconv.Atoi(m[1])
			if slices.Contains(nominalSizes, n) {
				return n
			}
		}
	}
	return 0
}

// mechanicalName makes a slug of a name that nobody has entered: its words without vendor, family, size,
// memory type and form, then the nominal size and the form.
func mechanicalName(key string, gb int) GPUName {
	vendor, form := "nvidia", ""
	var chip []string
	for _, t := range splitName.Split(key, -1) {
		switch {
		case t == "" || memToken.MatchString(t):
		case t == "amd" || t == "intel":
			vendor = t
		case t == "geforce" || t == "tesla" || t == "quadro" || t == "gpu" || t == "generation" || t == "graphics":
		case sizeToken.MatchString(t):
			if gb == 0 {
				gb = sizeInName(t)
			}
		case formToken.MatchString(t):
			form = formToken.FindStringSubmatch(t)[1]
		default:
			chip = append(chip, t)
		}
	}
	name := strings.Join(chip, "-")
	if name == "" {
		name = "gpu"
	}
	room := MaxModel - len(joinSlug(vendor, "", gb, form))
	if len(name) > room {
		name = strings.Trim(name[:room], "-")
	}
	return GPUName{Slug: joinSlug(vendor, name, gb, form), NominalGB: gb, Form: form}
}

// gpuAlias is a name that a user may ask for and the chips and size that it stands for (size 0 = every size).
type gpuAlias struct {
	name  string
	chips []string
	size  int
}

// gpuAliases are Beam's names first (sdk/src/beta9/type.py), then names that Beam lacks, spelt alike.
var gpuAliases = []gpuAlias{
	{"T4", []string{"t4"}, 0},
	{"L4", []string{"l4"}, 0},
	{"L40", []string{"l40"}, 0},
	{"L40S", []string{"l40s"}, 0},
	{"A10", []string{"a10"}, 0},
	{"A10G", []string{"a10g"}, 0},
	{"A16", []string{"a16"}, 0},
	{"A30", []string{"a30"}, 0},
	{"A40", []string{"a40"}, 0},
	{"A4000", []string{"rtx-a4000"}, 0},
	{"A5000", []string{"rtx-a5000"}, 0},
	{"A6000", []string{"rtx-a6000"}, 0},
	{"A100", []string{"a100"}, 0},
	{"A100-40", []string{"a100"}, 40},
	{"A100-80", []string{"a100"}, 80},
	{"V100", []string{"v100", "v100s"}, 0},
	{"V100-32", []string{"v100", "v100s"}, 32},
	{"H100", []string{"h100"}, 0},
	{"H200", []string{"h200"}, 0},
	{"GH200", []string{"gh200"}, 0},
	{"B200", []string{"b200"}, 0},
	{"B300", []string{"b300"}, 0},
	{"GAUDI2", []string{"gaudi2"}, 0},
	{"RTX4000Ada", []string{"rtx-4000-ada"}, 0},
	{"RTX4090", []string{"rtx-4090"}, 0},
	{"RTX5090", []string{"rtx-5090"}, 0},
	{"RTX6000", []string{"rtx-6000"}, 0},
	{"RTX6000Ada", []string{"rtx-6000-ada"}, 0},
	{"RTXPro6000", []string{"rtx-pro-6000"}, 0},
	{AnyGPU, nil, 0},
}

// aliasSet is an alias with its normalised spelling and its slugs.
type aliasSet struct {
	name  string
	norm  string
	slugs []string
	beam  bool // one of Beam's own names
}

// hasAll says whether every size of a card belongs to the alias.
func (a *aliasSet) hasAll(row gpuModel) bool {
	return !slices.ContainsFunc(row.sizes, func(gb int) bool { return !slices.Contains(a.slugs, row.slug(gb)) })
}

// aliasSets are all aliases, longest normalised name first, so that the most specific one is found first.
var aliasSets = func() []aliasSet {
	var out []aliasSet
	seen := map[string]bool{}
	add := func(a gpuAlias, beam bool) {
		norm := normaliseGPU(a.name)
		if seen[norm] {
			return
		}
		seen[norm] = true
		var slugs []string
		for _, row := range gpuTable {
			if !slices.Contains(a.chips, row.chip) {
				continue
			}
			for _, gb := range row.sizes {
				if a.size == 0 || a.size == gb {
					slugs = append(slugs, row.slug(gb))
				}
			}
		}
		slices.Sort(slugs)
		out = append(out, aliasSet{a.name, norm, slices.Compact(slugs), beam})
	}
	covered := map[string]bool{}
	for _, a := range gpuAliases {
		add(a, true)
		for _, c := range a.chips {
			covered[c] = true
		}
	}
	for _, row := range gpuTable {
		if !covered[row.chip] {
			add(gpuAlias{strings.ToUpper(strings.ReplaceAll(row.chip, "-", "")), []string{row.chip}, 0}, false)
		}
	}
	slices.SortStableFunc(out, func(a, b aliasSet) int { return len(b.norm) - len(a.norm) })
	return out
}()

// GPUAliases returns the names that a user may ask for, sorted.
func GPUAliases() []string {
	names := make([]string, 0, len(aliasSets))
	for _, a := range aliasSets {
		names = append(names, a.name)
	}
	slices.Sort(names)
	return names
}

// normaliseGPU keeps letters and digits in upper case and drops vendor and family words, as Beam does.
func normaliseGPU(s string) string {
	up := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z' || r >= '0' && r <= '9':
			return r
		default:
			return -1
		}
	}, s)
	for _, word := range []string{"NVIDIA", "GEFORCE", "TESLA", "QUADRO"} {
		up = strings.ReplaceAll(up, word, "")
	}
	return up
}

// GPUSet is what a requested GPU name stands for.
type GPUSet struct {
	// Alias is the name that was recognised; for a slug it is the slug itself.
	Alias string
	// Any says that every GPU fits; Slugs is then empty.
	Any bool
	// Slugs are the model slugs that fit, sorted.
	Slugs []string
}

// Has says whether a model slug belongs to the set.
func (s GPUSet) Has(slug string) bool {
	if s.Any {
		return slug != ""
	}
	_, ok := slices.BinarySearch(s.Slugs, slug)
	return ok
}

// ResolveGPU finds the set of model slugs that a requested name means: a slug means itself, other names are
// normalised as Beam does and matched to the most specific alias that they contain as words of its own: where Beam
// reads H1000 as an H100, this is an error, as is all else that means nothing. It returns ErrUnknownGPU with the
// three nearest aliases.
func ResolveGPU(request string) (GPUSet, error) {
	if len(request) > 2*MaxModel {
		return GPUSet{}, fmt.Errorf("%w: the name has %d bytes, at most %d fit", ErrUnknownGPU, len(request), 2*MaxModel)
	}
	if low := strings.ToLower(strings.TrimSpace(request)); len(low) <= MaxModel && slugForm.MatchString(low) && hasVendor(low) {
		return GPUSet{Alias: low, Slugs: []string{low}}, nil
	}
	norm := normaliseGPU(request)
	if norm == "ANY" {
		return GPUSet{Alias: AnyGPU, Any: true}, nil
	}
	for _, sized := range []struct{ chip, size, alias string }{{"A100", "80G", "A100-80"}, {"A100", "40G", "A100-40"}, {"V100", "32G", "V100-32"}} {
		if namesGPU(request, sized.chip) && strings.Contains(norm, sized.size) {
			norm = normaliseGPU(sized.alias)
			break
		}
	}
	for _, a := range aliasSets { // a driver's own name means its card, whatever else it contains
		if row, ok := gpuByRaw[rawKey(request)]; ok && norm == normaliseGPU(request) && a.hasAll(row) {
			return GPUSet{Alias: a.name, Slugs: a.slugs}, nil
		}
	}
	for _, a := range aliasSets {
		if a.name != AnyGPU && (norm == a.norm || namesGPU(request, a.norm)) {
			return GPUSet{Alias: a.name, Slugs: a.slugs}, nil
		}
	}
	return GPUSet{}, fmt.Errorf("%w %q; nearest: %s", ErrUnknownGPU, request, strings.Join(nearestGPUs(request), ", "))
}

// nearestGPUs are the three aliases that a name that is none may have meant.
func nearestGPUs(request string) []string {
	return nearest(cmp.Or(normaliseGPU(request), request), GPUAliases(), 3)
}

// gpuSuffix is what may follow a chip's name in one word: the form, the size, the kind of memory, as in A100SXM480GB.
var gpuSuffix = regexp.MustCompile(`^(PCIE|SXM[0-9]?|NVL|HBM[0-9]E?|[1-9][0-9]{1,2}GB?)*$`)

// namesGPU says whether a requested text names a normalised alias: one or more of its words in a row are the alias, but for
// a leading RTX, GTX or vendor's word, and a suffix of form or size. An alias inside a longer word is another name.
func namesGPU(request, alias string) bool {
	words := splitName.Split(strings.ToLower(request), -1)
	for from := range words {
		for to := from + 1; to <= len(words); to++ {
			joined := normaliseGPU(strings.Join(words[from:to], " "))
			if len(joined) > 2*MaxModel {
				break
			}
			rest, ok := strings.CutPrefix(joined, alias)
			if !ok {
				rest, ok = strings.CutPrefix(strings.TrimPrefix(strings.TrimPrefix(joined, "RTX"), "GTX"), alias)
			}
			if ok && gpuSuffix.MatchString(rest) {
				return true
			}
		}
	}
	return false
}

func hasVendor(slug string) bool {
	v, _, _ := strings.Cut(slug, "-")
	return v == "nvidia" || v == "amd" || v == "intel"
}

// nearest returns the n candidates with the smallest edit distance to s, letters compared without case.
func nearest(s string, candidates []string, n int) []string {
	s = strings.ToLower(s)
	if len(s) > 64 {
		s = s[:64]
	}
	out := slices.Clone(candidates)
	slices.SortStableFunc(out, func(a, b string) int {
		return editDistance(s, strings.ToLower(a)) - editDistance(s, strings.ToLower(b))
	})
	return out[:min(n, len(out))]
}

// editDistance is Levenshtein's distance in bytes.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diag
			if a[i] != b[j] {
				cost++
			}
			diag = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

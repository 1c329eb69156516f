package settlement

import (
	"encoding/hex"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/gridbeam/gridbeam/protocol"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func weights(w ...int64) []Weight {
	out := make([]Weight, len(w))
	for i, n := range w {
		out[i] = Weight{protocol.PeerID([]byte{byte(i + 1)}), big.NewInt(n)}
	}
	return out
}

// TestSplitsAreThoseOfTheDesign checks settlement.md 13.
func TestSplitsAreThoseOfTheDesign(t *testing.T) {
	for _, tt := range []struct {
		pool  int64
		w     []int64
		want  []int64
		carry int64
	}{
		{1000 * RenderUnits, []int64{120, 60, 15, 5}, []int64{600 * RenderUnits, 300 * RenderUnits, 75 * RenderUnits, 25 * RenderUnits}, 0},
		{RenderUnits, []int64{1, 1, 1}, []int64{33333334, 33333333, 33333333}, 0},
		{7, []int64{5, 3, 1}, []int64{4, 2, 1}, 0},
		{5, []int64{2, 2, 2, 1}, []int64{2, 1, 1, 1}, 0},
		{300 * RenderUnits, []int64{1250000, 1000000}, []int64{16666666667, 13333333333}, 0}, // bonus
		{99, []int64{0, 0}, []int64{0, 0}, 99},
		{99, nil, nil, 99},
		{0, []int64{1, 2}, []int64{0, 0}, 0},
	} {
		got, carry, err := Split(tt.pool, weights(tt.w...))
		if err != nil || !slices.Equal(got, tt.want) || carry != tt.carry {
			t.Errorf("Split(%d, %v) = %v, %d, %v, want %v, %d", tt.pool, tt.w, got, carry, err, tt.want, tt.carry)
		}
	}
	if _, _, err := Split(-1, weights(1)); !errors.Is(err, ErrAmount) {
		t.Errorf("a negative pool gives %v", err)
	}
	if _, _, err := Split(1, weights(1, -1)); !errors.Is(err, ErrAmount) {
		t.Errorf("a negative weight gives %v", err)
	}
	if _, _, err := Split(1, append(weights(1), weights(1)...)); !errors.Is(err, ErrAmount) {
		t.Errorf("a peer that comes twice gives %v", err)
	}
}

func TestComputePoolIsDollarWeighted(t *testing.T) {
	for _, tt := range []struct{ e, compute, octane, want int64 }{
		{1000 * RenderUnits, 3000e6, 7000e6, 30000000000},
		{1000 * RenderUnits, 0, 0, 0},
		{1000 * RenderUnits, 1, 0, 1000 * RenderUnits},
	} {
		if got, err := ComputePool(tt.e, tt.compute, tt.octane); err != nil || got != tt.want {
			t.Errorf("ComputePool(%d, %d, %d) = %d, %v, want %d", tt.e, tt.compute, tt.octane, got, err, tt.want)
		}
	}
}

func TestAvailabilityWeightsAreThoseOfTheDesign(t *testing.T) {
	one := Ratio{1, 1}
	for _, tt := range []struct {
		b, t, m, c Ratio
		want       int64
	}{
		{one, one, one, one, 1000000000000},
		{Ratio{1, 2}, one, one, one, 757858283255},
		{one, one, one, Ratio{1, 2}, 933032991536},
		{Ratio{2, 1}, Ratio{3, 2}, Ratio{5, 4}, Ratio{11, 10}, 1573115633629},
		{Ratio{0, 7}, one, one, one, 0},
		{one, one, one, Ratio{0, 1}, 0},
		{Ratio{1000, 1000}, Ratio{24, 24}, one, one, 1000000000000},
	} {
		if got, err := AvailabilityWeight(tt.b, tt.t, tt.m, tt.c); err != nil || got != tt.want {
			t.Errorf("AvailabilityWeight(%v, %v, %v, %v) = %d, %v, want %d", tt.b, tt.t, tt.m, tt.c, got, err, tt.want)
		}
	}
	if _, err := AvailabilityWeight(one, Ratio{1, 0}, one, one); !errors.Is(err, ErrAmount) || !strings.Contains(err.Error(), "throughput") {
		t.Errorf("a ratio to nothing gives %v", err)
	}
}

func TestRatesBillsAndBurnsAreThoseOfTheDesign(t *testing.T) {
	p := DefaultPrices()
	for _, tt := range []struct{ ask, want int64 }{{1_900_000, 2_000_000}, {350_000, 368_422}, {450_000, 473_685}, {0, 0}} {
		if got, err := p.Rate(tt.ask); err != nil || got != tt.want {
			t.Errorf("Rate(%d) = %d, %v, want %d", tt.ask, got, err, tt.want)
		}
	}
	bill, err := Bill(2_000_000, 10*HourMS)
	if err != nil || bill != 20_000_000 {
		t.Errorf("10 h at $2.00 are %d, %v", bill, err)
	}
	if parts, err := p.Parts(bill); err != nil || parts != (Parts{Foundation: 1_000_000, Burn: 19_000_000}) {
		t.Errorf("the parts of $20 are %+v, %v", parts, err)
	}
	for _, tt := range []struct{ burn, price, want int64 }{
		{19_000_000, 2_000_000, 950000000},
		{19_000_000, 1_900_000, 1000000000},
		{20_000_000, 1_900_000, 1052631579}, // top-up
		{600_000_000, 2_000_000, 30000000000},
	} {
		if got, err := BurnUnits(tt.burn, tt.price); err != nil || got != tt.want {
			t.Errorf("BurnUnits(%d, %d) = %d, %v, want %d", tt.burn, tt.price, got, err, tt.want)
		}
	}
	rate, _ := p.Rate(450_000)
	quote, err := Quote([]Line{{RateUUSD: rate, BilledMS: 8 * 90 * 60_000}})
	if err != nil || quote != 5_684_220 {
		t.Errorf("8 GPUs for 90 min are quoted %d, %v, want 5684220", quote, err)
	}
	if parts, err := p.Parts(quote); err != nil || parts.Fee() != 284_211 || parts.Burn != 5_400_009 {
		t.Errorf("the parts of the quote are %+v, %v", parts, err)
	}
	if got, err := p.ReserveAmount(quote, 0); err != nil || got != 6_252_642 {
		t.Errorf("reserved are %d, %v, want 6252642", got, err)
	}
	if got, err := p.ReserveAmount(quote, 7); err != nil || got != 7 {
		t.Errorf("with max_spend 7 reserved are %d, %v", got, err)
	}
}

func TestNumbersThatCannotBeAreRefused(t *testing.T) {
	p := DefaultPrices()
	const most = 1<<63 - 1
	for name, f := range map[string]func() (int64, error){
		"negative ask":   func() (int64, error) { return p.Rate(-1) },
		"ask too large":  func() (int64, error) { return p.Rate(most) },
		"negative rate":  func() (int64, error) { return Bill(-1, 1) },
		"negative time":  func() (int64, error) { return Bill(1, -1) },
		"bill too large": func() (int64, error) { return Bill(most, 2*HourMS) },
		"price 0":        func() (int64, error) { return BurnUnits(1, 0) },
		"negative pool":  func() (int64, error) { return ComputePool(-1, 1, 1) },
		"usd too large":  func() (int64, error) { return ComputePool(1, most, most) },
		"quote overflow": func() (int64, error) {
			return Quote([]Line{{RateUUSD: most, BilledMS: HourMS}, {RateUUSD: most, BilledMS: HourMS}})
		},
	} {
		if n, err := f(); !errors.Is(err, ErrAmount) {
			t.Errorf("%s gives %d, %v", name, n, err)
		}
	}
	// Products beyond int64 are no problem as long as the result fits (settlement.md 15).
	if n, err := BurnUnits(92_234_000_000, 2_000_000); err != nil || n != 4611700000000 {
		t.Errorf("a burn of $92,234 takes %d units, %v", n, err)
	}
	for field, p := range map[string]Prices{
		"OperatorPPM": {OperatorPPM: -1, ReservePPM: Million}, "FoundationPPM": {FoundationPPM: Million, ReservePPM: Million}, "ReservePPM": {},
	} {
		if err := p.Validate(); !errors.Is(err, ErrPrices) || !strings.Contains(err.Error(), field) {
			t.Errorf("%+v gives %v, which does not name %s", p, err, field)
		}
	}
}

func TestWalletsAreThoseOfTheDesign(t *testing.T) {
	const ones = "29d2S7vB453rNYFdR5Ycwt7y9haRT5fwVwL9zTmBhfV2"
	w, err := ParseWallet(ones)
	if err != nil || w != Wallet([]byte(strings.Repeat("\x11", 32))) || w.String() != ones {
		t.Errorf("ParseWallet(%s) = %x, %v", ones, w, err)
	}
	for text, why := range map[string]string{
		"G6ShajrrdiRnD4mW22j8T5kXyKSvwXaC64S9VGSzFA": "31 bytes",
		strings.Repeat("1", 32):                      "zero",
		strings.Repeat("1", 33):                      "33 bytes",
		"":                                           "0 characters",
		ones + "2":                                   "45 characters",
		"0" + ones[1:]:                               "alphabet",
		ones[:20] + " " + ones[21:]:                  "alphabet",
		strings.Repeat("z", 44):                      "33 bytes",
		"rndrizKT3MK1iimdxRdWabcF7Zg7AR5T4nud4EkHBof":  "RENDER token",
		"So11111111111111111111111111111111111111112":  "SOL token",
		"EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v": "USDC token",
		"Es9vMFrzaCERmJfrF4H2FYD4KCoNkY11McCe8BenwNYB": "USDT token",
	} {
		if w, err := ParseWallet(text); !errors.Is(err, ErrWallet) || !strings.Contains(err.Error(), why) {
			t.Errorf("ParseWallet(%q) = %x, %v, want something about %q", text, w, err, why)
		}
	}
	for mint := range mints {
		if b, err := decode58(mint); err != nil || len(b) != 32 || Wallet(b).String() != mint {
			t.Errorf("the listed token %s is no address: %x, %v", mint, b, err)
		}
	}
}

// TestOnCurveKnowsEd25519 asks for known points: the base point (y = 4/5) and the neutral element are on it, and RFC 8032's public keys;
// half of all strings are not.
func TestOnCurveKnowsEd25519(t *testing.T) {
	for _, s := range []string{
		"5866666666666666666666666666666666666666666666666666666666666666",
		"0100000000000000000000000000000000000000000000000000000000000000",
		"d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
		"3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
		"fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
	} {
		b, _ := hex.DecodeString(s)
		if !Wallet(b).OnCurve() {
			t.Errorf("%s is a point", s)
		}
	}
	var on int
	for i := range 200 {
		if (Wallet{byte(i), 7, 3}).OnCurve() {
			on++
		}
	}
	if on < 60 || on > 140 {
		t.Errorf("%d of 200 strings are points", on)
	}
}

func TestPayoutRootIsThatOfTheDesign(t *testing.T) {
	head, _ := hex.DecodeString("002408011220")
	id := func(b byte) protocol.PeerID {
		return protocol.PeerID(append(slices.Clone(head), []byte(strings.Repeat(string([]byte{b}), 32))...))
	}
	wallet := func(b byte) Wallet { return Wallet([]byte(strings.Repeat(string([]byte{b}), 32))) }
	payouts := []Payout{
		{Peer: id(3), Wallet: wallet(0x33), Job: 5208333333, Forfeited: 5208333333},
		{Peer: id(1), Wallet: wallet(0x11), Availability: 199000000, Job: 1488095238},
		{Peer: id(2), Wallet: wallet(0x22), Availability: 100000000, Held: 100000000},
	}
	policy := [32]byte([]byte(strings.Repeat("\xaa", 32)))
	for _, order := range [][]int{{0, 1, 2}, {2, 1, 0}} {
		leaves, err := PayoutLeaves("rnp021/2026-01-04T00:00:00Z", policy, []Payout{payouts[order[0]], payouts[order[1]], payouts[order[2]]})
		if err != nil {
			t.Fatal(err)
		}
		if got := Root(leaves); hex.EncodeToString(got[:]) != "a4a2a633f0ecb916f9e37f36574345e2d24ca43770147c261a492114a1afdb59" {
			t.Errorf("root is %x", got)
		}
	}
	if _, err := PayoutLeaves("e", policy, append(payouts, payouts[0])); !errors.Is(err, ErrLeaf) {
		t.Errorf("a peer that comes twice gives %v", err)
	}
	if _, err := PayoutLeaf("e", policy, Payout{Peer: id(1), Job: 1, Held: 2}); !errors.Is(err, ErrAmount) {
		t.Errorf("keeping back more than there is gives %v", err)
	}
}

func TestSuggestedRatesAreThoseOfTheDesign(t *testing.T) {
	for slug, want := range map[string]int64{
		"rtx-4090": 370139, "rtx-4080": 277546, "rtx-3090-ti": 462731, "rtx-3080": 161806, "rtx-3070": 115509, "rtx-2080-ti": 231250, "gtx-1660-ti": 64583,
		"gtx-1660-super": 53009, "nvidia-rtx-4090-24gb": 370139, "rtx-3080-12gb": 161806,
	} {
		if got, err := SuggestRate(slug, 25); err != nil || got != want {
			t.Errorf("SuggestRate(%s) = %d, %v, want %d", slug, got, err, want)
		}
	}
	for megabytes, want := range map[int64]int64{0: 350000, 25: 350000, 49: 350000, 50: 367500, 100: 385000, 400: 428750, 1000: 525000, 5000: 525000} {
		if got, err := surcharge(350_000, megabytes); err != nil || got != want {
			t.Errorf("$0.35 at %d MB/s is %d, %v, want %d", megabytes, got, err, want)
		}
	}
	if _, err := SuggestRate("gaudi2", 25); !errors.Is(err, ErrNoPrice) {
		t.Errorf("a GPU without a list price gives %v", err)
	}
	if _, err := SuggestRate("rtx-4090", -1); !errors.Is(err, ErrAmount) {
		t.Errorf("negative bandwidth gives %v", err)
	}
}

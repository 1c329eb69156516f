package settlement

import (
	"errors"
	"fmt"
	"strings"
)

// ErrNoPrice means a GPU of which no list price is known: its ask cannot be suggested, only chosen.
var ErrNoPrice = errors.New("settlement: no list price")

// breakEvenHours is RNP-004's: a card earns its price in 180 days.
const breakEvenHours = 180 * 24

// listUSD is the manufacturer's list price in USD, by the model part of protocol's GPU slugs (RNP-004 image 6).
var listUSD = map[string]int64{
	"rtx-4090": 1599, "rtx-4080": 1199, "rtx-4070-ti": 799, "rtx-3090-ti": 1999, "rtx-3090": 1499, "rtx-3080-ti": 1199, "rtx-3080": 699,
	"rtx-3070-ti": 599, "rtx-3070": 499, "rtx-3060-ti": 399, "rtx-2080-ti": 999, "rtx-2080-super": 699, "rtx-2080": 699, "rtx-2070-super": 499,
	"rtx-2070": 499, "rtx-2060-super": 399, "gtx-1660-ti": 279, "gtx-1660-super": 229, "gtx-1660": 219,
}

// SuggestRate is RNP-004's rate for a GPU slug such as nvidia-rtx-4090-24gb or its model part, micro-USD per
// hour: the list price over 180 days, rounded half up, and the surcharge for the slower of both directions in
// megabytes a second (image 5). A node's own ask is final. It returns ErrNoPrice or ErrAmount.
func SuggestRate(slug string, megabytes int64) (int64, error) {
	if megabytes < 0 {
		return 0, fmt.Errorf("%w: bandwidth is %d", ErrAmount, megabytes)
	}
	model := strings.TrimPrefix(slug, "nvidia-")
	if i := strings.LastIndexByte(model, '-'); i > 0 && strings.HasSuffix(model, "gb") && listUSD[model] == 0 {
		model = model[:i]
	}
	usd, ok := listUSD[model]
	if !ok {
		return 0, fmt.Errorf("%w: %s", ErrNoPrice, slug)
	}
	return surcharge((2*usd*Million+breakEvenHours)/(2*breakEvenHours), megabytes)
}

// surcharge adds the part per mille of the highest tier reached, rounded half up.
func surcharge(rate, megabytes int64) (int64, error) {
	perMille := int64(0)
	for _, t := range []struct{ megabytes, perMille int64 }{{50, 50}, {100, 100}, {200, 150}, {300, 200}, {400, 225}, {500, 255}, {1000, 500}} {
		if megabytes >= t.megabytes {
			perMille = t.perMille
		}
	}
	n, err := mulDiv("rate", rate, 2*(1000+perMille), 1000, false)
	return (n + 1) / 2, err
}

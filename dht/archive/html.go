package archive

import (
	"fmt"
	"html/template"
	"io"
	"slices"
	"strings"
	"time"
)

// page is what the template shows. Everything in it that others wrote is escaped by html/template.
type page struct {
	Archive *Archive
	Cover   string
	Plots   []plot
	Life    []bar
	Span    string
}

// plot is a bar chart: supply or reachability.
type plot struct {
	Title, Note string
	Bars        []bar
}

// bar is a horizontal bar; X and W are in the drawing's units of 1/600 of its width.
type bar struct {
	Label, Value string
	X, W         float64
	Y            int
}

const (
	barWidth   = 600.0
	barHeight  = 18
	mostBars   = 30
	mostInLife = 400
)

func bars(stats []Stat, of func(Stat) uint64) []bar {
	stats = slices.DeleteFunc(slices.Clone(stats), func(s Stat) bool { return of(s) == 0 })
	slices.SortStableFunc(stats, func(a, b Stat) int { return int(of(b)) - int(of(a)) })
	var out []bar
	most := uint64(1)
	for _, s := range stats {
		most = max(most, of(s))
	}
	for i, s := range stats[:min(len(stats), mostBars)] {
		out = append(out, bar{Label: strings.Join(s.By, " · "), Value: fmt.Sprint(of(s)), W: barWidth * float64(of(s)) / float64(most), Y: i * barHeight})
	}
	return out
}

// life draws presence: one line a peer, from its first to its last sign of life.
func (a *Archive) life() ([]bar, string) {
	from, err1 := parseStamp(a.Manifest.StartedAt)
	to, err2 := parseStamp(a.Manifest.FinishedAt)
	for i := range a.Presence {
		if t, err := parseStamp(a.Presence[i].Start); err == nil && t.Before(from) {
			from = t
		}
	}
	if err1 != nil || err2 != nil || !to.After(from) {
		return nil, ""
	}
	at := func(s string) float64 {
		t, err := parseStamp(s)
		if err != nil {
			return 0
		}
		return barWidth * min(1, max(0, float64(t.Sub(from))/float64(to.Sub(from))))
	}
	var out []bar
	for i, p := range a.Presence[:min(len(a.Presence), mostInLife)] {
		x := at(p.Start)
		out = append(out, bar{Label: p.PeerID, Value: p.Reason, X: x, W: max(1, at(p.End)-x), Y: i * 3})
	}
	return out, to.Sub(from).Round(time.Second).String()
}

func (a *Archive) writeHTML(w io.Writer) error {
	p := page{Archive: a, Cover: "no estimate: fewer than two servers answered"}
	if c := a.Manifest.Coverage; c.Share != nil {
		p.Cover = fmt.Sprintf("%.1f %% of an estimated %.0f peers (95 %%: %.1f..%.1f %%)", 100**c.Share, *c.Estimate, 100**c.ShareLow, 100**c.ShareHigh)
	}
	for _, x := range []struct {
		by, title, note string
		of              func(Stat) uint64
	}{
		{"model", "Supply: GPUs by claimed model", "GPUs that nodes claim; nobody has checked them", func(s Stat) uint64 { return s.GPUs }},
		{"region", "Supply: peers by claimed region", "peers with a current record", func(s Stat) uint64 { return uint64(s.Peers) }},
		{"reachability", "Reachability as claimed", "peers with a current record", func(s Stat) uint64 { return uint64(s.Peers) }},
		{"alive", "Alive", "whether peers with a current record gave a sign of life during the crawl", func(s Stat) uint64 { return uint64(s.Peers) }},
	} {
		stats, err := a.Stats([]string{x.by})
		if err != nil {
			return err
		}
		p.Plots = append(p.Plots, plot{x.title, x.note, bars(stats, x.of)})
	}
	p.Plots = append(p.Plots, plot{"Reachability as dialled", "peers that were visited", bars([]Stat{
		{By: []string{"answered"}, Peers: a.Crawl.DialablePeers},
		{By: []string{"did not answer"}, Peers: a.Crawl.UndialablePeers},
		{By: []string{"not tried"}, Peers: a.Crawl.RemainingPeers},
	}, func(s Stat) uint64 { return uint64(s.Peers) })})
	p.Life, p.Span = a.life()
	return htmlPage.Execute(w, p)
}

var htmlPage = template.Must(template.New("page").Funcs(template.FuncMap{
	"height": func(n, each int) int { return n*each + 4 },
	"plus":   func(a, b int) int { return a + b },
}).Parse(`<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>gridbeam network, {{.Archive.Manifest.StartedAt}}</title>
<style>body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b;background:#fff}
h2{font-size:1.1rem;margin:2rem 0 0}p{margin:.2rem 0}svg{width:100%;height:auto}text{font:11px system-ui,sans-serif}.n{color:#595959}
table{border-collapse:collapse}td,th{text-align:left;padding:0 1rem 0 0}</style>
<h1>gridbeam network</h1>
<table>
<tr><th>crawled<td>{{.Archive.Manifest.StartedAt}} to {{.Archive.Manifest.FinishedAt}} ({{.Archive.Manifest.State}})
<tr><th>software<td>{{.Archive.Manifest.Software}}, {{.Archive.Manifest.Version}}
<tr><th>seen<td>{{index .Archive.Manifest.Counts "peers_with_record"}} peers with a record, {{index .Archive.Manifest.Counts "present"}} with signs of life
<tr><th>coverage<td>{{.Cover}}
<tr><th>verification<td>{{.Archive.Manifest.Verifiable}}
<tr><th>licence<td>{{.Archive.Manifest.Licence}}
</table>
{{range .Plots}}<h2>{{.Title}}</h2><p class="n">{{.Note}}{{if not .Bars}}: none{{end}}</p>
<svg viewBox="0 0 900 {{height (len .Bars) 18}}" role="img" aria-label="{{.Title}}">{{range .Bars}}<text x="220" y="{{plus .Y 13}}" text-anchor="end">{{.Label}}</text><rect x="230" y="{{plus .Y 3}}" width="{{printf "%.1f" .W}}" height="12" fill="#2b6cb0"/><text x="235" y="{{plus .Y 13}}" dx="{{printf "%.1f" .W}}">{{.Value}}</text>{{end}}</svg>
{{end}}{{if .Life}}<h2>Presence</h2><p class="n">One line a peer, from its first to its last sign of life; {{.Span}} in all. Lines that reach an edge go on unseen.</p>
<svg viewBox="0 0 600 {{height (len .Life) 3}}" role="img" aria-label="Presence">{{range .Life}}<rect x="{{printf "%.1f" .X}}" y="{{.Y}}" width="{{printf "%.1f" .W}}" height="2" fill="#2f855a"><title>{{.Label}}: {{.Value}}</title></rect>{{end}}</svg>
{{end}}</html>
`))

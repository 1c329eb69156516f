// Package layering holds the source tree against the picture of it: docs/ARCHITECTURE.md says in tables who
// may import whom, and this package reads both and names every import that the tables do not allow.
//
// The flow:
//  1. Parse reads the tables of section 1: rooms, inner rooms, libraries with one home, pure rooms and
//     files of formulas.
//  2. Load reads every Go file below the root, for all platforms and build tags: what it imports, and where
//     it touches the clock or the process's randomness.
//  3. Check gives one Breach for each import or call that no row admits, and for each package without a row.
//
// Its own test runs it over this repository; nobody else imports it. It sees imports, not behaviour: two
// rooms that share a type through a third one pass. A directory with a go.mod of its own, a testdata
// directory and a hidden one are not looked at.
package layering

// Package archive keeps surveys of the network as files that others can read, count and verify again.
//
// The flow:
//  1. A Journal appends every event of a running survey, so that one that was cut off goes on where it ended.
//  2. Write turns the findings into the files of a crawl directory: visits and neighbours as Nebula names them,
//     records with the envelopes that their nodes signed, presence, and a manifest with the hash of each file,
//     signed by the crawler. Anonymise takes out of them what points at a person or machine.
//  3. Open reads a directory again. Its rows, one a group of GPUs, are what Export writes as CSV, Parquet, NDJSON
//     and HTML, and what Stats counts: the same files give the same bytes.
//  4. Verify checks a directory, or records alone, without the network, and names the first row that does not hold.
//  5. Watch keeps when peers were there, over days.
//
// It may be imported by cmd; it imports dht and protocol.
//
// It guarantees: what Verify accepts was signed by the node that each record names and says what its columns
// say, and no file has changed since the crawler signed the manifest. It does not guarantee that the crawler
// wrote down all that it saw, nor that what nodes claim of themselves is true.
package archive

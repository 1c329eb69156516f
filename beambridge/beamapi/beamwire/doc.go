// Package beamwire is what Beam's clients say and hear, as protobuf messages of our own making: the numbers and names
// of Beam's wire and nothing else, for the methods that beamapi serves.
//
//  1. A .proto file holds the messages of one service; its package bears Beam's name, since that is what a method's
//     path and the names in JSON follow. The linter of protobufs is off here for that reason.
//  2. `make generate` makes the Go code; services are not in it: beamapi lists methods in a table of its own.
//  3. Fields that are missing here are skipped by a client or by us, as protobuf wants it.
//
// Only beamapi imports it. It has no behaviour.
package beamwire

// Package gridbeamv1 holds the generated protobuf messages of the gridbeam wire. Package protocol gives
// them meaning, bounds and signatures; other packages use that one, or these for frames of their own.
package gridbeamv1

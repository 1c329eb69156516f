// Command sweep trains one small neural network on the UCI optical digits and writes how good it became.
//
// It is the example job of gridbeam: compiled to WebAssembly (GOOS=wasip1 GOARCH=wasm), one run trains one
// configuration of a hyperparameter grid.
//
//  1. It reads digits.csv.gz from the directory that --data names (a volume, mounted read-only).
//  2. A shuffle with a fixed seed, the same for every configuration, splits the rows 60/20/20 into train,
//     validation and test: in file order the last rows are other writers' and score far lower.
//  3. It trains a 64-hidden-10 network by stochastic gradient descent with the learning rate, hidden size,
//     epochs and seed of --config, a JSON object.
//  4. It writes results/<configuration>.json under --out. Who picks a configuration compares validation
//     accuracy only; the test accuracy is reported for the picked one.
//
// The same configuration and the same data give the same bytes: the seed is the only randomness, there are
// no goroutines, and each product is rounded before it is added, so that no compiler may fuse the two.
package main

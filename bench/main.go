// Command bench measures gridbeam against its figures to beat: each row beside its baseline, in the same minutes.
package main

func main() {}

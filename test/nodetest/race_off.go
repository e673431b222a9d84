//go:build !race

package nodetest

// raceDetector is true if the tests are built with the race detector. Then weir-agent is also built with the race
// detector, unless the tests use MainAsShipped.
const raceDetector = false

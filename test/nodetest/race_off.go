//go:build !race

package nodetest

// raceDetector is true if the test is built with the race detector. Then weir-agent is built with the detector too,
// unless the test uses MainAsShipped.
const raceDetector = false

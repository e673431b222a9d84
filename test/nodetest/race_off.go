//go:build !race

package nodetest

// raceDetector is true if the test is built with the race detector. weir-agent is then built with it too, except for
// MainAsShipped.
const raceDetector = false

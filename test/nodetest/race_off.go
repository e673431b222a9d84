//go:build !race

package nodetest

// raceDetector is true if the tests are built with the race detector. weir-agent is then built with it too, except by
// MainAsShipped.
const raceDetector = false

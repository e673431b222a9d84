//go:build !race

package nodetest

// raceDetector tells whether the test runs with the race detector. weir-agent is then built with it too.
const raceDetector = false

package bridge

import "os/exec"

// runIn runs a command in the named namespace. It returns the output, and an error if the command fails.
func runIn(ns string, args ...string) (string, error) {
	out, err := exec.Command("ip", append([]string{"netns", "exec", ns}, args...)...).CombinedOutput()
	return string(out), err
}

package agentapi

import (
	"bufio"
	"bytes"
	"errors"
	"testing"
)

// FuzzDropsAnswer: for any answer of the agent, readDrops doesn't panic, and each drop has a kind.
func FuzzDropsAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{}\n{\"kind\":\"drop\",\"count\":3}\n"))
	f.Add([]byte("HTTP/1.0 503\r\n\r\n{\"error\":\"no\"}"))
	f.Fuzz(func(t *testing.T, answer []byte) {
		in := bufio.NewReader(bytes.NewReader(answer))
		if _, err := readHead(in); err != nil {
			return
		}
		broken := errors.New("broken")
		err := readDrops(in, func(error) error { return broken }, func(d *Drop) bool {
			if d != nil && d.Kind == "" {
				t.Error("an empty drop")
			}
			return true
		})
		if err != nil && !errors.Is(err, broken) {
			t.Error(err)
		}
	})
}

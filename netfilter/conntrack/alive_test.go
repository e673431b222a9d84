package conntrack

import (
	"strings"
	"testing"

	"github.com/weir-net/weir/test/nodetest"
)

// TestAlive: a connection is alive if the kernel has marked it as assured, and the connection hasn't ended.
func TestAlive(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	for entry, want := range map[string]bool{
		"-p tcp --sport 1 --dport 80 --state SYN_SENT":                                                         false,
		"-p tcp --sport 2 --dport 80 --state ESTABLISHED -u SEEN_REPLY,ASSURED":                                true,
		"-p tcp --sport 3 --dport 80 --state FIN_WAIT -u SEEN_REPLY,ASSURED":                                   true,
		"-p tcp --sport 4 --dport 80 --state CLOSE_WAIT -u SEEN_REPLY,ASSURED":                                 true,
		"-p tcp --sport 5 --dport 80 --state TIME_WAIT -u SEEN_REPLY,ASSURED":                                  false,
		"-p tcp --sport 6 --dport 80 --state CLOSE -u SEEN_REPLY,ASSURED":                                      false,
		"-p udp --sport 7 --dport 53":                                                                          false,
		"-p udp --sport 8 --dport 53 -u SEEN_REPLY":                                                            false,
		"-p udp --sport 9 --dport 53 -u SEEN_REPLY,ASSURED":                                                    true,
		"-p sctp --sport 10 --dport 80 --state ESTABLISHED --orig-vtag 1 --reply-vtag 2 -u SEEN_REPLY,ASSURED": true,
	} {
		nodetest.Run(t, "conntrack", "-F")
		nodetest.Run(t, "conntrack",
			append(strings.Fields("-I -s 10.88.0.2 -d 10.88.0.3 -t 100"), strings.Fields(entry)...)...)
		n := 0
		for c, err := range All() {
			if err != nil {
				t.Fatal(err)
			}
			if n++; c.Alive() != want {
				t.Errorf("%s: lives: %v, want %v", entry, c.Alive(), want)
			}
		}
		if n != 1 {
			t.Errorf("%s: %d entries", entry, n)
		}
	}
}

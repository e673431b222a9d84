package conntrack

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
)

// Held reports whether another program holds packets that rules with the target NFQUEUE have sent to it. If such a
// packet begins a connection, the connection isn't in the table yet: the kernel adds it when the program lets the
// packet go on. If the number of held packets can't be read, Held returns true.
//
// Equivalent to: awk '$3 > 0' /proc/self/net/netfilter/nfnetlink_queue
func Held() bool {
	text, err := os.ReadFile("/proc/thread-self/net/netfilter/nfnetlink_queue")
	if errors.Is(err, fs.ErrNotExist) { // the kernel's module for queues isn't loaded
		return false
	}
	return err != nil || held(text)
}

// held reports whether one of the queues has a packet. A line begins with the queue's number, the port ID of its
// program, and the number of packets in the queue (seq_show in net/netfilter/nfnetlink_queue.c).
func held(queues []byte) bool {
	for line := range bytes.Lines(queues) {
		if f := bytes.Fields(line); len(f) > 0 && (len(f) < 3 || string(f[2]) != "0") {
			return true
		}
	}
	return false
}

package conntrack

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
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

// Load says how full the connection table is: it has Entries, and room for Most (0 means no limit).
type Load struct {
	Entries, Most int
	// Evicted is how many entries the kernel has deleted so far to make room for new ones. It does so only if the table
	// is full, and it deletes no assured connection.
	Evicted uint64
}

// ReadLoad returns the load of the connection table. Without connection tracking, it returns the zero Load.
//
// Equivalent to: sysctl net.netfilter.nf_conntrack_count net.netfilter.nf_conntrack_max; conntrack -S
func ReadLoad() (l Load, err error) {
	for file, value := range map[string]*int{"nf_conntrack_count": &l.Entries, "nf_conntrack_max": &l.Most} {
		*value, err = readNumber("/proc/sys/net/netfilter/" + file)
		if errors.Is(err, fs.ErrNotExist) {
			return Load{}, nil
		}
		if err != nil {
			return Load{}, fmt.Errorf("read the load of the connection table: %w", err)
		}
	}
	text, err := os.ReadFile("/proc/thread-self/net/stat/nf_conntrack")
	if errors.Is(err, fs.ErrNotExist) { // a kernel without CONFIG_NF_CONNTRACK_PROCFS
		return l, nil
	}
	if err == nil {
		l.Evicted, err = evicted(string(text))
	}
	if err != nil {
		return Load{}, fmt.Errorf("read the load of the connection table: %w", err)
	}
	return l, nil
}

// evicted returns the sum of the column early_drop. The text has a line of column names, and then a line of hexadecimal
// numbers for each processor.
func evicted(text string) (sum uint64, err error) {
	column := -1
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if column < 0 {
			if column = slices.Index(f, "early_drop"); column < 0 {
				return 0, errors.New("there is no column early_drop")
			}
			continue
		}
		if column >= len(f) {
			return 0, fmt.Errorf("the line %q is too short", line)
		}
		n, err := strconv.ParseUint(f[column], 16, 64)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

func readNumber(path string) (int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

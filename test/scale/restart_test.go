package scale_test

import (
	"bufio"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

type restarted struct {
	started
	// Writes is the number of requests that change something in the kernel, by kind. It is nil if the requests were
	// not counted.
	Writes map[string]int
}

const tracing = 12 * time.Second

func (n *node) restart() restarted {
	n.StopAgent()
	return restarted{started: n.start()}
}

// restartTraced restarts the agent under strace, and counts the agent's writes to the kernel until a resync is over.
// Then it restarts the agent without strace, and measures this start.
func (n *node) restartTraced() restarted {
	n.Helper()
	n.StopAgent()
	bin, dir := n.Bin, n.TempDir()
	trace := filepath.Join(dir, "trace")
	// With -D, the agent stays this process's child, and strace becomes a grandchild.
	script := fmt.Sprintf("#!/bin/sh\nexec strace -D -f -qq -v "+
		"-e trace=sendto,sendmsg,sendmmsg,setsockopt -e signal=none -o %s %s \"$@\"\n",
		trace, filepath.Join(bin, "weir-agent"))
	if err := os.WriteFile(filepath.Join(dir, "weir-agent"), []byte(script), 0o700); err != nil {
		n.Fatal(err)
	}
	n.Bin = dir
	n.start()
	n.Bin = bin
	time.Sleep(tracing)
	n.StopAgent()
	writes, err := countWrites(trace)
	if err != nil {
		n.Fatal(err)
	}
	return restarted{started: n.start(), Writes: writes}
}

var writing = regexp.MustCompile(`nlmsg_type=(RTM_(?:NEW|DEL|SET)\w+|NFNL_SUBSYS_(?:IPSET<<8\|IPSET_CMD_` +
	`(?:CREATE|DESTROY|FLUSH|RENAME|SWAP|ADD|DEL)|NFTABLES<<8\|NFT_MSG_(?:NEW|DEL|DESTROY)\w+|` +
	`CTNETLINK<<8\|IPCTNL_MSG_CT_(?:NEW|DELETE)))\b|\b(IP6?T_SO_SET_REPLACE)\b`)

func countWrites(trace string) (map[string]int, error) {
	f, err := os.Open(trace)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	writes := map[string]int{}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		for _, m := range writing.FindAllStringSubmatch(lines.Text(), -1) {
			kind := m[1] + m[2]
			writes[kind[strings.IndexByte(kind, '|')+1:]]++
		}
	}
	return writes, lines.Err()
}

// TestCountWrites: only requests that change something are counted.
func TestCountWrites(t *testing.T) {
	trace := filepath.Join(t.TempDir(), "trace")
	text := `7 sendto(3, [{nlmsg_len=52, nlmsg_type=RTM_NEWROUTE, nlmsg_flags=0}, {rtm_family=AF_INET}], 52, 0) = 52
7 sendto(3, [{nlmsg_len=52, nlmsg_type=RTM_GETROUTE, nlmsg_flags=NLM_F_DUMP}, {rtm_family=AF_INET}], 52, 0) = 52
8 sendmsg(4, {msg_iov=[{iov_base=[[{nlmsg_len=20, nlmsg_type=NFNL_MSG_BATCH_BEGIN}], ` +
		`[{nlmsg_type=NFNL_SUBSYS_NFTABLES<<8|NFT_MSG_NEWRULE}], [{nlmsg_type=NFNL_SUBSYS_NFTABLES<<8|NFT_MSG_NEWRULE}]]}) = 9
8 sendto(3, [{nlmsg_type=NFNL_SUBSYS_NFTABLES<<8|NFT_MSG_GETGEN}], 20, 0) = 20
8 sendto(3, [{nlmsg_type=NFNL_SUBSYS_IPSET<<8|IPSET_CMD_HEADER}], 20, 0) = 20
8 sendto(3, [{nlmsg_type=NFNL_SUBSYS_IPSET<<8|IPSET_CMD_ADD}], 20, 0) = 20
9 setsockopt(4, SOL_IP, IPT_SO_SET_REPLACE, "", 9) = 0
`
	if err := os.WriteFile(trace, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := countWrites(trace)
	want := map[string]int{"RTM_NEWROUTE": 1, "NFT_MSG_NEWRULE": 2, "IPSET_CMD_ADD": 1, "IPT_SO_SET_REPLACE": 1}
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
}

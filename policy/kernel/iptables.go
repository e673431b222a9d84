package kernel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/coreos/go-iptables/iptables"

	"github.com/weir-net/weir/conf"
)

// Flavour of iptables: its rules are kept by the old x_tables code (legacy) or by nf_tables (nft). Rules of both apply,
// so a node should use one.
type Flavour string

// The flavours.
const (
	Legacy Flavour = "legacy"
	NFT    Flavour = "nft"
)

func (f Flavour) other() Flavour {
	if f == Legacy {
		return NFT
	}
	return Legacy
}

// lockWait is how long iptables waits for its lock, in seconds: kube-proxy may hold it while it writes many rules.
const lockWait = "10"

// Detect finds out which flavour the node uses: that in which kubelet or kube-proxy have left their chains
// (KUBE-IPTABLES-HINT, KUBE-KUBELET-CANARY; KEP-3178), else the one with more rules of others', else the newer.
func Detect(ctx context.Context) (Flavour, error) {
	rules := map[Flavour]int{}
	var errs []error
	for _, f := range []Flavour{NFT, Legacy} {
		out, err := f.save(ctx, conf.IPv4)
		if err != nil {
			errs = append(errs, err)
			rules[f] = -1
			continue
		}
		if strings.Contains(out, ":KUBE-IPTABLES-HINT ") || strings.Contains(out, ":KUBE-KUBELET-CANARY ") {
			return f, nil
		}
		for line := range strings.Lines(out) {
			if strings.HasPrefix(line, "-A ") && !strings.Contains(line, chainPrefix) {
				rules[f]++
			}
		}
	}
	switch {
	case rules[NFT] < 0 && rules[Legacy] < 0:
		return "", fmt.Errorf("find out which iptables the node uses: %w", errors.Join(errs...))
	case rules[Legacy] > rules[NFT]:
		return Legacy, nil
	}
	return NFT, nil
}

// program for the family's rules: iptables-nft, or ip6tables-nft.
func (f Flavour) program(family conf.Family) string {
	if family == conf.IPv6 {
		return "ip6tables-" + string(f)
	}
	return "iptables-" + string(f)
}

// save prints the family's tables that there are, or the one named. Unlike listing, it doesn't make tables in passing.
//
// Equivalent to: iptables-save -t TABLE (ip6tables-save for IPv6)
func (f Flavour) save(ctx context.Context, family conf.Family, table ...string) (string, error) {
	var args []string
	if len(table) > 0 {
		args = []string{"-t", table[0]}
	}
	return run(ctx, f.program(family)+"-save", args...)
}

func run(ctx context.Context, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var out bytes.Buffer
	var errOut output
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, errOut.String())
	}
	return out.String(), nil
}

// clean removes weir's jumps and chains from the flavour's tables of both families.
//
// Equivalent to: iptables -t TABLE -D CHAIN JUMP…; iptables -t TABLE -F WEIR-…; iptables -t TABLE -X WEIR-…; and with
// ip6tables
func (f Flavour) clean(ctx context.Context) error {
	var errs []error
	for _, family := range conf.Families {
		errs = append(errs, f.cleanFamily(ctx, family))
	}
	return errors.Join(errs...)
}

func (f Flavour) cleanFamily(ctx context.Context, family conf.Family) error {
	out, err := f.save(ctx, family)
	if errors.Is(err, exec.ErrNotFound) || (err == nil && !strings.Contains(out, chainPrefix)) {
		return nil // listing chains would make the tables, so it is only done where weir has been
	}
	if err != nil && family == conf.IPv6 {
		return nil // a kernel without it, so nobody can have been there
	}
	if err != nil {
		return err
	}
	protocol := iptables.ProtocolIPv4
	if family == conf.IPv6 {
		protocol = iptables.ProtocolIPv6
	}
	ipt, err := iptables.New(iptables.IPFamily(protocol), iptables.Path(f.program(family)), iptables.Timeout(10))
	if err != nil {
		return fmt.Errorf("open %s: %w", f.program(family), err)
	}
	for _, table := range tablesUsed {
		if err := f.cleanTable(ctx, ipt, family, table); err != nil {
			return fmt.Errorf("clean table %s of %s: %w", table, f.program(family), err)
		}
	}
	return nil
}

func (f Flavour) cleanTable(ctx context.Context, ipt *iptables.IPTables, family conf.Family, name string) error {
	out, err := f.save(ctx, family, name)
	if err != nil {
		return err
	}
	var commands strings.Builder
	have := parseSave(out)
	for chain, lines := range have {
		for _, l := range lines {
			if !strings.HasPrefix(chain, chainPrefix) && strings.Contains(l, "-j "+chainPrefix) {
				fmt.Fprintf(&commands, "-D %s %s\n", chain, l)
			}
		}
	}
	if commands.Len() > 0 {
		r, err := startRestorer(f, family)
		if err == nil {
			err = r.carryOut(ctx, "*"+name+"\n"+commands.String()+"COMMIT\n")
		}
		if err != nil {
			return err
		}
	}
	for _, remove := range []func(table, chain string) error{ipt.ClearChain, ipt.DeleteChain} {
		for chain := range have { // all are emptied before the first is deleted: they refer to each other
			if strings.HasPrefix(chain, chainPrefix) {
				if err := remove(name, chain); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

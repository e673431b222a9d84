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
		out, err := f.save(ctx)
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

// save prints the tables that there are, or the one named. Unlike listing, it doesn't make tables in passing.
//
// Equivalent to: iptables-save -t TABLE
func (f Flavour) save(ctx context.Context, table ...string) (string, error) {
	var args []string
	if len(table) > 0 {
		args = []string{"-t", table[0]}
	}
	return run(ctx, "", "iptables-"+string(f)+"-save", args...)
}

// restore carries out the commands in one transaction for each table.
//
// Equivalent to: iptables-restore --wait 10 --noflush < COMMANDS
func (f Flavour) restore(ctx context.Context, commands string) error {
	_, err := run(ctx, commands, "iptables-"+string(f)+"-restore", "--wait", lockWait, "--noflush")
	if err != nil {
		return fmt.Errorf("%w\n%s", err, commands)
	}
	return nil
}

func run(ctx context.Context, stdin, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errOut
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(errOut.String()))
	}
	return out.String(), nil
}

// clean removes weir's jumps and chains from the flavour's tables.
//
// Equivalent to: iptables -t TABLE -D CHAIN JUMP…; iptables -t TABLE -F WEIR-…; iptables -t TABLE -X WEIR-…
func (f Flavour) clean(ctx context.Context) error {
	out, err := f.save(ctx)
	if errors.Is(err, exec.ErrNotFound) || (err == nil && !strings.Contains(out, chainPrefix)) {
		return nil // listing chains would make the tables, so it is only done where weir has been
	}
	if err != nil {
		return err
	}
	ipt, err := iptables.New(iptables.Path("iptables-"+string(f)), iptables.Timeout(10))
	if err != nil {
		return fmt.Errorf("open iptables-%s: %w", f, err)
	}
	for _, table := range tablesUsed {
		if err := cleanTable(ctx, ipt, f, table); err != nil {
			return fmt.Errorf("clean table %s of iptables-%s: %w", table, f, err)
		}
	}
	return nil
}

func cleanTable(ctx context.Context, ipt *iptables.IPTables, f Flavour, name string) error {
	out, err := f.save(ctx, name)
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
		if err := f.restore(ctx, "*"+name+"\n"+commands.String()+"COMMIT\n"); err != nil {
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

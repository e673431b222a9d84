package ipam

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"math/big"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
)

// shortageFile has the ranges of the last pod that found no free address. The runtime passes the ranges only to the
// plugin, so the agent reads them from this file.
const shortageFile = endpoint.Dir + "/shortage.json"

// ExhaustedError means that no address of the ranges is free. The ranges are all of one family.
type ExhaustedError struct {
	Ranges []conf.Range
}

func (e *ExhaustedError) Error() string {
	names := make([]string, len(e.Ranges))
	for i, r := range e.Ranges {
		names[i] = r.String()
	}
	return fmt.Sprintf("ranges: no free address in %s: all %d addresses are assigned",
		strings.Join(names, ", "), size(e.Ranges))
}

func (e *ExhaustedError) Remedy() string {
	return "an address is free again when its pod is deleted; \"weirctl pods\" lists the pods and their addresses. " +
		"For more pods, give the node a larger range, or lower kubelet's maxPods to the number of addresses"
}

func size(ranges []conf.Range) int64 {
	total := new(big.Int)
	for _, r := range ranges {
		for _, run := range r.Runs() {
			number := func(a netip.Addr) *big.Int { return new(big.Int).SetBytes(a.AsSlice()) }
			total.Add(total, number(run.To())).Sub(total, number(run.From())).Add(total, big.NewInt(1))
		}
	}
	if !total.IsInt64() {
		return math.MaxInt64
	}
	return total.Int64()
}

// recordShortage stores the ranges for Shortage. It returns no error: ADD fails with an ExhaustedError in any case.
func recordShortage(ranges []conf.Range) {
	data, err := json.Marshal(ranges)
	if err == nil {
		_ = os.WriteFile(shortageFile, data, 0o600)
	}
}

// Shortage returns the error of the last pod that found no free address, as long as the ranges still have no free
// address. Otherwise it removes shortageFile and returns nil. It takes no lock. If the bitmaps are damaged, Shortage
// may report a shortage that doesn't exist, until the next ADD rebuilds the bitmaps.
func Shortage() (*ExhaustedError, error) {
	data, err := os.ReadFile(shortageFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read which ranges have no free address: %w", err)
	}
	var ranges []conf.Range
	if err := json.Unmarshal(data, &ranges); err != nil || len(ranges) == 0 {
		// The next pod that finds no free address writes the file again.
		return nil, os.Remove(shortageFile)
	}
	if exhausted(ranges) {
		return &ExhaustedError{Ranges: ranges}, nil
	}
	if err := os.Remove(shortageFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("forget that %v had no free address: %w", ranges, err)
	}
	return nil, nil
}

func exhausted(ranges []conf.Range) bool {
	others := newHostLocal()
	if others.unread != nil { // no address is known to be free
		return true
	}
	return slices.ContainsFunc(byFamily(ranges), func(f []conf.Range) bool {
		_, ok := next(hint{readOnly: true}, others, f)
		return !ok
	})
}

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

// shortageFile names the ranges of which the last pod that needed an address got none. It is there for the agent, which
// knows no ranges: the runtime passes them to the plugin alone.
const shortageFile = endpoint.Dir + "/shortage.json"

// ExhaustedError says that every address of one family's ranges is held.
type ExhaustedError struct {
	Ranges []conf.Range
}

func (e *ExhaustedError) Error() string {
	names := make([]string, len(e.Ranges))
	for i, r := range e.Ranges {
		names[i] = r.String()
	}
	return fmt.Sprintf("ranges: no free address in %s: all %d addresses are held", strings.Join(names, ", "), size(e.Ranges))
}

// Remedy is a sentence for the person who reads the error.
func (e *ExhaustedError) Remedy() string {
	return "an address is free again when its pod is deleted; \"weirctl pods\" lists the pods that hold addresses. " +
		"For more pods, give the node a larger range, or lower kubelet's maxPods to the number of addresses"
}

// size is the number of addresses that the ranges give out, at most math.MaxInt64.
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

// noteShortage keeps the ranges for Shortage. A note that can't be written leaves ADD's own error as it is: the note
// only serves the agent's report.
func noteShortage(ranges []conf.Range) {
	data, err := json.Marshal(ranges)
	if err == nil {
		_ = os.WriteFile(shortageFile, data, 0o600)
	}
}

// Shortage returns the error that the last pod got which found no free address, as long as there is none; nil if there
// was no such pod, or if an address is free by now. Shortage takes no lock, so bitmaps that somebody has damaged can
// keep the shortage until the next ADD, which makes them anew.
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
		// A half-written note says nothing; the next pod that finds no address writes it again.
		return nil, os.Remove(shortageFile)
	}
	if full(ranges) {
		return &ExhaustedError{Ranges: ranges}, nil
	}
	if err := os.Remove(shortageFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("forget that %v had no free address: %w", ranges, err)
	}
	return nil, nil
}

// full says whether some family of the ranges has no free address.
func full(ranges []conf.Range) bool {
	others := newHostLocal()
	return slices.ContainsFunc(byFamily(ranges), func(f []conf.Range) bool {
		_, ok := next(hint{readOnly: true}, others, f)
		return !ok
	})
}

// Command weir is the CNI plugin: it gives a container its link to the node's bridge, its addresses, and its place in
// the sets that policy is enforced by. The runtime calls it; see the CNI specification, "Section 2".
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"
)

// supported are the versions of the CNI specification that the plugin speaks.
var supported = version.PluginSupports("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")

func main() { os.Exit(run()) }

// run answers in the version of the specification that the runtime speaks, also what it answers before any verb is called.
func run() int {
	spoken := version.Current()
	err := func() *types.Error {
		command := os.Getenv("CNI_COMMAND")
		if command == "" { // by hand: nothing may be on its way to stdin
			return dispatch()
		}
		stdin, err := readStdin(command)
		if err != nil {
			return err
		}
		if v, ok := specified(stdin); ok {
			spoken = v
		}
		if command == "VERSION" {
			return printVersion(stdin, spoken)
		}
		if err := checkNames(command); err != nil {
			return err
		}
		return dispatch()
	}()
	if err == nil {
		return 0
	}
	printError(err, spoken)
	return 1
}

func dispatch() *types.Error {
	return skel.PluginMainFuncsWithError(skel.CNIFuncs{
		Add: coded(add), Del: coded(del), Check: coded(check), GC: coded(gc), Status: coded(status),
	}, supported, "weir: pod network and network policy")
}

// checkNames is what skel does too, with the variable's name in the message (CNI specification 1.1, "Error": code 4).
func checkNames(command string) *types.Error {
	if command != "ADD" && command != "DEL" && command != "CHECK" {
		return nil
	}
	for _, v := range []struct {
		name  string
		check func(string) *types.Error
	}{{"CNI_CONTAINERID", utils.ValidateContainerID}, {"CNI_IFNAME", utils.ValidateInterfaceName}} {
		value := os.Getenv(v.name)
		if value == "" {
			continue // skel names all that are missing
		}
		if err := v.check(value); err != nil {
			return types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("%s: %q: %s", v.name, value, err.Msg), err.Details)
		}
	}
	return nil
}

// coded gives errors without a code of the specification's that of an I/O failure: whatever can be said of the caller's
// input has one by then.
func coded(verb func(*skel.CmdArgs) error) func(*skel.CmdArgs) error {
	return func(args *skel.CmdArgs) error {
		err := verb(args)
		var e *types.Error
		if err == nil || errors.As(err, &e) {
			return err
		}
		return types.NewError(types.ErrIOFailure, err.Error(), "")
	}
}

// readStdin reads the configuration, and gives skel, which reads it again, another stdin to read it from. Whoever asks for
// the version from a terminal gives none.
func readStdin(command string) ([]byte, *types.Error) {
	if info, _ := os.Stdin.Stat(); command == "VERSION" && (info == nil || info.Mode()&os.ModeCharDevice != 0) {
		return nil, nil
	}
	data, err := io.ReadAll(os.Stdin)
	if err != nil {
		return nil, types.NewError(types.ErrIOFailure, fmt.Sprintf("read the network configuration from stdin: %v", err), "")
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, types.NewError(types.ErrIOFailure, fmt.Sprintf("hand on the network configuration: %v", err), "")
	}
	os.Stdin = r
	go func() { // it may be larger than a pipe holds
		_, _ = io.Copy(w, bytes.NewReader(data)) // who reads it finds out
		_ = w.Close()
	}()
	return data, nil
}

// specified is the cniVersion of the configuration, if it has one that can be told.
func specified(stdin []byte) (string, bool) {
	var c struct {
		CNIVersion string `json:"cniVersion"`
	}
	if json.Unmarshal(stdin, &c) != nil || c.CNIVersion == "" {
		return "", false
	}
	_, _, _, err := version.ParseVersion(c.CNIVersion)
	return c.CNIVersion, err == nil
}

// printVersion answers VERSION: cniVersion is that of the question (CNI specification 1.1, "Section 5: Version").
func printVersion(stdin []byte, spoken string) *types.Error {
	if len(bytes.TrimSpace(stdin)) > 0 && !json.Valid(stdin) {
		return types.NewError(types.ErrDecodingFailure, "stdin is no JSON", "")
	}
	return printJSON(struct {
		CNIVersion string   `json:"cniVersion"`
		Supported  []string `json:"supportedVersions"`
	}{spoken, supported.SupportedVersions()})
}

// printError answers with the error (CNI specification 1.1, "Section 5: Error"), which skel prints without cniVersion.
func printError(e *types.Error, spoken string) {
	err := printJSON(struct {
		CNIVersion string `json:"cniVersion"`
		*types.Error
	}{spoken, e})
	if err != nil {
		fmt.Fprintf(os.Stderr, "weir: %v, while answering with %v\n", err, e)
	}
}

func printJSON(v any) *types.Error {
	enc := json.NewEncoder(os.Stdout)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return types.NewError(types.ErrIOFailure, fmt.Sprintf("write the answer to stdout: %v", err), "")
	}
	return nil
}

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/internal/excerpt"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/source/manifests"
)

type checked struct {
	// Ready is true if an agent with these files would become ready.
	Ready      bool                  `json:"ready"`
	Errors     []string              `json:"errors"`
	Problems   []agentapi.Problem    `json:"problems"`
	Unenforced []agentapi.Unenforced `json:"unenforced"`
	Policies   []string              `json:"policies"`
	Files      []agentapi.File       `json:"files"`
}

func checkCommand() *cobra.Command {
	var output, node string
	cmd := &cobra.Command{
		Use:   "check dir:PATH",
		Short: "Say which manifests of a directory would be read, and what is wrong with them",
		Long: "Says which files and objects of a directory of manifests \"run --source dir:PATH\" would read, which it\n" +
			"would leave out, and why. It enforces nothing, and needs neither root nor an agent.\n\n" +
			"It fails if an object can't be used as it is written, or if a file would keep an agent from being ready.\n" +
			"Policies of kinds that weir doesn't enforce are warnings.",
		Example: "  weir-agent check dir:/etc/weir/manifests",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, ok := strings.CutPrefix(args[0], "dir:")
			if !ok || path == "" {
				return fmt.Errorf("%s: must be dir:PATH", args[0])
			}
			write := map[string]func(io.Writer, checked) error{"text": writeChecked, "json": writeCheckedJSON}[output]
			if write == nil {
				return fmt.Errorf("-o %s: must be text or json", output)
			}
			c, err := check(path, node)
			if err != nil {
				return err
			}
			if err := write(cmd.OutOrStdout(), c); err != nil {
				return fmt.Errorf("print what was found: %w", err)
			}
			switch {
			case !c.Ready:
				return errors.New("an agent would not be ready: a file can't be read that may contain a policy")
			case len(c.Errors)+len(c.Problems) > 0:
				return fmt.Errorf("%d errors and %d problems", len(c.Errors), len(c.Problems))
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	cmd.Flags().StringVar(&node, "node-name", os.Getenv("NODE_NAME"),
		"the node's name, which kubelet appends to the names of static pods; default: the host's name")
	return cmd
}

func check(path, node string) (checked, error) {
	dir := &manifests.Dir{Path: path, Node: kubeletName(node)}
	objects, broken := dir.Check()
	if objects == nil && dir.Files() == nil {
		return checked{}, broken
	}
	c := checked{
		Ready: objects != nil, Errors: []string{}, Problems: []agentapi.Problem{}, Unenforced: []agentapi.Unenforced{},
		Policies: []string{}, Files: dir.Files(),
	}
	if broken != nil {
		c.Errors = strings.Split(broken.Error(), "\n")
	}
	if objects == nil { // read again without the broken files, to report problems of the other files
		dir = &manifests.Dir{Path: path, Node: kubeletName(node), IgnoreBroken: true}
		if objects, _ = dir.Check(); objects == nil {
			return c, nil // a file is being written just now
		}
	}
	for _, p := range policy.Compile(policy.State{Objects: *objects}).Problems {
		c.Problems = append(c.Problems, agentapi.Problem(p))
	}
	for _, u := range objects.Unenforced {
		c.Unenforced = append(c.Unenforced, agentapi.Unenforced(u))
	}
	for _, p := range objects.Policies {
		c.Policies = append(c.Policies, p.Namespace+"/"+p.Name)
	}
	slices.Sort(c.Policies)
	return c, nil
}

func writeCheckedJSON(w io.Writer, c checked) error {
	return excerpt.WriteJSON(w, "  ", c)
}

func writeChecked(out io.Writer, c checked) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) } // Flush reports errors
	for _, e := range c.Errors {
		line("ERROR:\t%s", excerpt.Of(e))
	}
	problems := make([]ruleset.Problem, len(c.Problems))
	for i, p := range c.Problems {
		problems[i] = ruleset.Problem(p)
	}
	for _, p := range ruleset.Together(problems) {
		line("PROBLEM:\t%s", agentapi.OneLine(p.String()))
	}
	for _, u := range c.Unenforced {
		line("WARNING:\t%s", agentapi.OneLine(u.String()))
	}
	line("policies:\t%s", excerpt.List(c.Policies, ", "))
	for _, l := range agentapi.FileLines(c.Files) {
		line("%s", l)
	}
	return w.Flush()
}

// kubeletName returns the name that kubelet gives this node. This is the argument node in lower case, or the host's
// name in lower case if node is empty.
func kubeletName(node string) string {
	if node == "" {
		node, _ = os.Hostname()
	}
	return strings.ToLower(node)
}

// Command weirctl shows people what weir does on this node or in the whole cluster (as kubectl weir), and what it would
// do with the manifests of a directory.
//
// Invariants:
//   - Two commands change something in a cluster. check makes pods and policies in a namespace of its own, and removes
//     the namespace. flows --record and flows --stop make agents begin and end a recording.
//   - weirctl writes no file except the one that the arguments name.
//   - If no agent answers, status shows the endpoint records and the sets in the kernel, and fails.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"github.com/weir-net/weir/internal/excerpt"
	"github.com/weir-net/weir/internal/version"
	"github.com/weir-net/weir/plugins/weirctl/client"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends weirctl at once

	klog.SetLogger(logr.Discard()) // client-go would log errors to standard error, where each command prints its own
	err := rootCommand().ExecuteContext(ctx)
	code, text := client.Code(err)
	if errors.Is(err, os.ErrPermission) && os.Geteuid() > 0 && !strings.Contains(text, "as root") {
		text += ": run weirctl as root"
	}
	if text != "" {
		fmt.Fprintln(os.Stderr, "weirctl:", excerpt.Of(text))
	}
	return code
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use: "weirctl", Short: "Show what weir does on this node", SilenceUsage: true, SilenceErrors: true,
	}
	if isPlugin() {
		root.Short = "Show what weir does in this cluster"
		root.Annotations = map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl weir"}
	}
	root.Args, root.SuggestionsMinimumDistance = knownCommand, 2
	// cobra's own flag Version needs a template. A template makes the linker keep every method, which nearly
	// doubles the program.
	showVersion := root.Flags().Bool("version", false, "print the commit of this program, its date, and Go's version")
	root.RunE = func(cmd *cobra.Command, _ []string) error {
		if !*showVersion {
			return cmd.Help()
		}
		_, err := fmt.Fprintln(cmd.OutOrStdout(), version.Of("weirctl"))
		return err
	}
	root.AddCommand(statusCommand(), podsCommand(), explainCommand(), versionCommand())
	root.AddCommand(auditCommand(), dropsCommand(), matrixCommand(), diffCommand())
	root.AddCommand(flowsCommand(), suggestCommand())
	root.AddCommand(waitCommand(), dumpCommand(), connectCommand())
	root.AddCommand(checkCommand(), probeCommand())
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return client.Usage(err) })
	failOnUnknownTopics(root)
	return root
}

// outputFlag adds the flag --output. The flag's values are the words, and words[0] is the default. The flag's help
// ends with the text more.
func outputFlag(cmd *cobra.Command, output *string, more string, words ...string) {
	last := len(words) - 1
	help := strings.Join(words[:last], ", ") + " or " + words[last] + more
	cmd.Flags().StringVarP(output, "output", "o", words[0], help)
	client.CompleteWords(cmd, "output", words...)
}

// spanFlag is a length of time. 0 means that the flag is missing.
type spanFlag time.Duration

// Set accepts lengths of time that are longer than 0.
func (s *spanFlag) Set(text string) error {
	span, err := time.ParseDuration(text)
	if err != nil || span <= 0 {
		return errors.New("must be a length of time above 0, such as 5m or 24h")
	}
	*s = spanFlag(span)
	return nil
}

func (s *spanFlag) String() string {
	if *s == 0 {
		return "" // the help then states no default
	}
	return time.Duration(*s).String()
}

// Type returns the value's name in the help.
func (s *spanFlag) Type() string { return "duration" }

// interruptible returns a command that ends at Ctrl-C even while it reads a pipe or computes. It is for commands that
// can be abandoned at any moment and leave nothing behind.
func interruptible(run func(*cobra.Command, []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		done := make(chan error, 1)
		go func() { done <- run(cmd, args) }()
		select {
		case err := <-done:
			return err
		case <-cmd.Context().Done():
			return errInterrupted
		}
	}
}

var errInterrupted = errors.New("interrupted")

// knownCommand returns an error for an unknown command. Package client looks for the first words of this error,
// because an agent's pod may have an older weirctl.
func knownCommand(root *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := "--help lists them"
	if near := root.SuggestionsFor(args[0]); len(near) > 0 {
		hint = "did you mean " + strings.Join(near, " or ") + "?"
	}
	return client.Usage(fmt.Errorf("unknown command %q for %q: %s", args[0], root.CommandPath(), hint))
}

// failOnUnknownTopics makes the commands help and completion fail if their argument isn't known. Without this change,
// cobra's help and completion succeed.
func failOnUnknownTopics(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		switch cmd.Name() {
		case "help":
			cmd.Run = nil
			cmd.RunE = func(_ *cobra.Command, args []string) error {
				topic, rest, err := root.Find(args)
				if err != nil {
					return client.Usage(err)
				}
				if err := knownCommand(topic, rest); err != nil {
					return err
				}
				topic.InitDefaultHelpFlag()
				return topic.Help()
			}
		case "completion":
			cmd.Args, cmd.SuggestionsMinimumDistance = cobra.ArbitraryArgs, root.SuggestionsMinimumDistance
			cmd.RunE = func(cmd *cobra.Command, args []string) error {
				if len(args) == 0 {
					return cmd.Help()
				}
				return knownCommand(cmd, args)
			}
			for _, shell := range cmd.Commands() {
				shell.Args = client.NoArgs
			}
		}
	}
}

// isPlugin reports whether kubectl runs weirctl. "kubectl weir" starts a program called kubectl-weir.
func isPlugin() bool {
	return strings.HasPrefix(filepath.Base(os.Args[0]), "kubectl-weir")
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show the commit that weirctl was built from, its date, and Go's version",
		Args:  client.NoArgs,
		Run:   func(cmd *cobra.Command, _ []string) { _, _ = fmt.Fprintln(cmd.OutOrStdout(), version.Of("weirctl")) },
	}
}

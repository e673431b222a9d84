package client

import (
	"cmp"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weir-net/weir/internal/excerpt"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/explain"
)

const completesWithin = 2 * time.Second

// completion returns a function that completes the names. The function hides errors, because a shell would print
// the errors into the command line.
func (s *Source) completion(
	names func(explain.Cluster) []string, directive cobra.ShellCompDirective,
) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, begin string) ([]cobra.Completion, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), completesWithin)
		defer cancel()
		namespace, _, _ := strings.Cut(begin, "/")
		c, err := s.Load(ctx, namespace)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var fitting []cobra.Completion
		for _, n := range names(c) {
			if strings.HasPrefix(n, begin) && !strings.ContainsFunc(n, odd) {
				fitting = append(fitting, n)
			}
		}
		slices.Sort(fitting)
		return slices.Compact(fitting), cobra.ShellCompDirectiveNoFileComp | directive
	}
}

// odd returns false for lower-case letters, digits, "-", "." and "/". A shell could act on any other character, so a
// name with an odd character isn't completed.
func odd(r rune) bool {
	return (r < 'a' || r > 'z') && (r < '0' || r > '9') && !strings.ContainsRune("-./", r)
}

// CompleteEnds completes an end of a connection: a pod, a Service, a node, or the word world.
func (s *Source) CompleteEnds() cobra.CompletionFunc {
	return s.completion(func(c explain.Cluster) []string {
		all := []string{"world"}
		for _, p := range c.Pods {
			all = append(all, p.Namespace+"/"+p.Name)
		}
		for _, v := range c.Services {
			all = append(all, "svc/"+v.String())
		}
		for _, n := range c.Nodes {
			if n.Name != "" {
				all = append(all, "node/"+n.Name)
			}
		}
		return all
	}, cobra.ShellCompDirectiveNoSpace) // without a space, so that a port may follow
}

func (s *Source) completeNamespaces() cobra.CompletionFunc {
	return s.completion(func(c explain.Cluster) (all []string) {
		for _, n := range c.Namespaces {
			all = append(all, n.Name)
		}
		for _, p := range c.Pods {
			all = append(all, p.Namespace)
		}
		return all
	}, cobra.ShellCompDirectiveDefault)
}

func (s *Source) CompletePolicies() cobra.CompletionFunc {
	return s.completion(func(c explain.Cluster) (all []string) {
		for _, p := range c.Policies {
			all = append(all, p.Namespace+"/"+p.Name)
		}
		return all
	}, cobra.ShellCompDirectiveDefault)
}

func (s *Source) CompleteAudited() cobra.CompletionFunc {
	return s.completion(func(c explain.Cluster) (all []string) {
		for _, p := range c.Policies {
			if audited, err := policy.Audited(p); audited && err == nil {
				all = append(all, p.Namespace+"/"+p.Name)
			}
		}
		return all
	}, cobra.ShellCompDirectiveDefault)
}

func (s *Source) CompletePods() cobra.CompletionFunc {
	return s.completion(func(c explain.Cluster) (all []string) {
		for _, p := range c.Pods {
			all = append(all, p.Namespace+"/"+p.Name)
		}
		return all
	}, cobra.ShellCompDirectiveDefault)
}

func (s *Source) CompleteNodes() cobra.CompletionFunc {
	return s.completion(func(c explain.Cluster) (all []string) {
		for _, n := range c.Nodes {
			all = append(all, n.Name)
		}
		return all
	}, cobra.ShellCompDirectiveDefault)
}

// CompleteWords makes a shell complete the flag with the words, and not with names of files.
func CompleteWords(cmd *cobra.Command, flag string, words ...string) {
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
}

// completePlace completes the flag --source. If the value begins with "dir:", it completes directories.
func completePlace(_ *cobra.Command, _ []string, begin string) ([]cobra.Completion, cobra.ShellCompDirective) {
	path, isDir := strings.CutPrefix(begin, dirPlace)
	if !isDir {
		return []cobra.Completion{placeAgent, placeKubernetes, dirPlace},
			cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	}
	parent, _ := filepath.Split(path)
	entries, _ := os.ReadDir(cmp.Or(parent, "."))
	var all []cobra.Completion
	for _, e := range entries {
		if whole := parent + e.Name(); e.IsDir() && strings.HasPrefix(whole, path) && excerpt.Printable(whole) == whole {
			all = append(all, dirPlace+whole+"/")
		}
	}
	return all, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}

// CompleteFlags adds completions to the command's flags for namespaces, pods, policies, nodes and sources. It skips
// flags that the command doesn't have.
func (s *Source) CompleteFlags(cmd *cobra.Command) {
	for flag, complete := range map[string]cobra.CompletionFunc{
		"namespace": s.completeNamespaces(), "pod": s.CompletePods(), "policy": s.CompletePolicies(),
		"node": s.CompleteNodes(), "from": s.CompletePods(), "to": s.CompletePods(), "delete": s.CompletePolicies(),
		"source": completePlace,
	} {
		if cmd.Flags().Lookup(flag) != nil {
			_ = cmd.RegisterFlagCompletionFunc(flag, complete) // fails only for an unknown flag
		}
	}
}

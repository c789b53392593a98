<#
.SYNOPSIS
    Stops this user's refit-agent service and removes its scheduled task.
.DESCRIPTION
    Also ends whatever else runs from the agent's folder, so that its files can be replaced or deleted afterwards.
    An engine that an app is waiting for is let finish, for a while. A task that runs the agent of another folder,
    which another app brought, is left alone. If nothing is registered or running, that is a success.
.PARAMETER Folder
    The agent's folder. By default the folder above that of this script. Need not exist any more.
.PARAMETER Purge
    Delete this user's cache and state too, with 'refit-agent uninstall --purge --yes'. All apps of this user share
    the cache: those that stay have to make their engines anew.
.PARAMETER PatienceSeconds
    How long an engine that an app waits for may take to finish before the service is ended.
.EXAMPLE
    powershell.exe -NoProfile -ExecutionPolicy Bypass -File Unregister-RefitAgent.ps1 -Purge
.OUTPUTS
    Exit codes: 0 done, 1 something could not be stopped or removed, 2 usage; with -Purge also those of refit-agent.
.NOTES
    For Windows PowerShell 5.1 and later. Parsed by the tests; not run on Windows yet.
#>
[CmdletBinding()]
param(
    [ValidateNotNullOrEmpty()]
    [string] $Folder = (Split-Path -Parent $PSScriptRoot),

    [switch] $Purge,

    [ValidateRange(0, 3600)]
    [int] $PatienceSeconds = 20
)
Set-StrictMode -Version 2.0
$ErrorActionPreference = 'Stop'

try {
    Import-Module (Join-Path $PSScriptRoot 'RefitAgent.psm1') -Force
    [void] (Get-RefitAgentUser)
    $root = [System.IO.Path]::GetFullPath($Folder).TrimEnd('\')
}
catch {
    [Console]::Error.WriteLine("refit-agent: $_")
    exit 2
}

try {
    $task = Get-RefitAgentTask
    if ($task -and -not (Test-RefitAgentSameFolder -First (Get-RefitAgentTaskFolder -Task $task) -Second $root)) {
        Write-Output "This user's service runs from $(Get-RefitAgentTaskFolder -Task $task) and stays."
        $task = $null
    }
    Stop-RefitAgentProcess -Folder $root -Task $task -PatienceSeconds $PatienceSeconds -Confirm:$false
    if ($task) {
        Unregister-ScheduledTask -InputObject $task -Confirm:$false
    }
}
catch {
    [Console]::Error.WriteLine("refit-agent: the service could not be removed: $_")
    exit 1
}

if ($Purge) {
    try {
        $wish = 'uninstall', '--purge', '--yes'
        $code = Invoke-RefitAgent -Folder $root -ArgumentList $wish -OnLine { param($line) [Console]::Out.WriteLine($line) }
    }
    catch {
        [Console]::Error.WriteLine("refit-agent: the cache could not be deleted: $_")
        exit 1
    }
    if ($code -ne 0) {
        exit $code
    }
}
Write-Output 'The service is removed.'
exit 0
